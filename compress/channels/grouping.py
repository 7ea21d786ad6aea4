"""From labels to groups: what the forward pass has tied becomes one unit, units of the same layers one group."""

import torch
from torch import Tensor

from .groups import ChannelMap, Group, Mix
from .propagation import Propagation
from .ties import NONE


def grouped(trace: Propagation, logits: Tensor) -> ChannelMap:
    """Build the channel map of a model that has run; `logits` [1, classes] is its output."""
    classes = trace.per_channel(logits, 1)
    trace.ties.pin(classes, "its outputs are the model's classes")
    roots = trace.ties.roots()
    groups, unit_of = _groups(trace, roots)

    def units(labels: Tensor) -> Tensor:
        return unit_of[roots[labels]]  # NONE picks the last element, which is NONE

    return ChannelMap(
        groups=tuple(groups),
        reads={layer: units(labels) for layer, labels in trace.reads.items()},
        writes={layer: units(labels) for layer, labels in trace.writes.items()},
        axes={name: {axis: units(labels) for axis, labels in axes.items()} for name, axes in trace.axes.items()},
        positions=trace.positions,
        classifier=_classifier(trace, roots, classes),
        mixes=tuple(
            Mix(name, number, tuple((place, axis, units(labels)) for place, axis, labels in reads))
            for name, number, reads in trace.mixes
        ),
    )


def _classifier(trace: Propagation, roots: Tensor, classes: Tensor) -> str:
    """Find the last layer that writes a class; "" where no layer does."""
    final = set(roots[classes].tolist())
    return next((layer for layer, labels in reversed(trace.writes.items()) if set(roots[labels].tolist()) & final), "")


def _groups(trace: Propagation, roots: Tensor) -> tuple[list[Group], Tensor]:
    """Number the units: all groups in forward order, and the global unit of each root label, [labels + 1]."""
    groups: list[Group] = []
    unit_of = torch.full((len(roots),), NONE)
    offset = 0
    for layers, members in _components(trace.writes, roots):
        unit_of[members] = torch.arange(offset, offset + len(members))
        groups.append(_group(trace, layers, members, offset))
        offset += len(members)
    return groups, unit_of


def _group(trace: Propagation, layers: list[str], members: list[int], offset: int) -> Group:
    """Make the group of some layers, in forward order, and of their root labels."""
    name = next((layer for layer in layers if layer not in trace.self_slicing), layers[0])
    filters = len(trace.writes[name])
    fixed = tuple(i for i, root in enumerate(members) if root in trace.ties.why)
    why = trace.ties.why[members[fixed[0]]] if fixed else ""
    if len(members) == 1 and not fixed:
        why = f"its {filters} channels are all tied together: cutting one would cut them all"
    return Group(name, tuple(layers), offset, len(members), filters, fixed, why)


def _components(writes: dict[str, Tensor], roots: Tensor) -> list[tuple[list[str], list[int]]]:
    """Collect layers that share root labels, and those labels in order of first appearance."""
    components: list[tuple[list[str], dict[int, None]]] = []
    for layer, written in writes.items():
        members = dict.fromkeys(root for root in roots[written].tolist() if root >= 0)
        if not members:
            continue
        joined = [component for component in components if component[1].keys() & members.keys()]
        if not joined:
            components.append(([layer], members))
            continue
        first = joined[0]
        for other in joined[1:]:
            first[0].extend(other[0])
            first[1].update(other[1])
            components.remove(other)
        first[0].append(layer)
        first[1].update(members)
    order = {layer: i for i, layer in enumerate(writes)}
    return [(sorted(layers, key=order.__getitem__), list(members)) for layers, members in components]
