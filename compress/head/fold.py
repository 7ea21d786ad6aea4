"""The order of a classifier's features, written into the layers that make them."""

import torch
from torch import Tensor, nn

from ...clone import clone
from ..channels import ChannelMap, captured
from ..network.resize import replace_tensor


def fold(model: nn.Module, channels: ChannelMap, layer: str, example: Tensor, order: Tensor) -> nn.Module | None:
    """Copy the model so that feature `order[i]` comes i-th to `layer`, by reordering the channels before it.

    Costs nothing at inference; what `layer` reads of `example` is compared with what it read before. None where the
    features are not the channels of one group, one position each (a flattened map, a concat): no order of channels then
    gives that order of features. `layer` itself is left as it is.
    """
    units = channels.reads[layer]
    group = next((g for g in channels.groups if g.offset <= int(units[0]) < g.offset + g.units), None)
    if group is None or sorted(units.tolist()) != list(range(group.offset, group.offset + group.units)):
        return None
    moved = torch.arange(sum(g.units for g in channels.groups))  # the unit that comes where a unit stood
    moved[units] = units[order]
    reordered = clone(model)
    tensors = {**dict(reordered.named_parameters()), **dict(reordered.named_buffers())}
    for name, axes in channels.axes.items():
        if name.rpartition(".")[0] == layer:
            continue
        tensor = tensors[name]
        for axis, labels in axes.items():
            source = _sources(labels, moved)
            if source is None:
                return None
            tensor = tensor.detach().index_select(axis, source.to(tensor.device))
        replace_tensor(reordered, name, tensor)
    for name, module in reordered.named_modules():
        if hasattr(module, "permute_channels") and name in channels.reads:
            sides = _sources(channels.reads[name], moved), _sources(channels.writes[name], moved)
            if sides[0] is None or sides[1] is None:
                return None
            module.permute_channels(*sides)
    with torch.inference_mode(), captured(model, [layer]) as before, captured(reordered, [layer]) as after:
        model.eval()(example)
        reordered.eval()(example)
    old, new = before[layer][:, order], after[layer]
    return reordered if bool((old - new).abs().max() <= 1e-3 * old.abs().max()) else None


def _sources(labels: Tensor, moved: Tensor) -> Tensor | None:
    """Find for each channel the one that takes its place; None where a unit stands more than once and another does not."""
    places: dict[int, list[int]] = {}
    for i, unit in enumerate(labels.tolist()):
        places.setdefault(unit, []).append(i)
    source = list(range(len(labels)))
    for unit, spots in places.items():
        if unit < 0 or int(moved[unit]) == unit:
            continue
        others = places.get(int(moved[unit]), [])
        if len(others) != len(spots):
            return None
        for spot, other in zip(spots, others, strict=True):
            source[spot] = other
    return torch.tensor(source)
