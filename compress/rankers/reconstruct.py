"""What a filter's loss costs after the best repair: optimal brain surgeon on channels, without labels.

Each layer that reads a group's units is a least-squares problem: its own outputs from what it reads in the whole network.
Losing a unit costs the squared error that is left once the other inputs have made up for it as well as they can
(layerwise/elimination.py), in shares of the variance of the layer's outputs, times how far an error there moves the logits
(layerwise/influence.py). A unit's cost is summed over the layers that read it: a share of the logits' variance. The unit that
costs least goes, the others are weighed anew, and so on to the last: the whole curve error(width) of a group.

A conv of groups (depthwise ones too) loses its filters with what they read, and has nothing to repair: those that read these
filters carry the cost. A layer that computes no weighted sum (a shortcut that pads) passes a unit's share of the variance on.
"""

import time
from collections.abc import Iterable, Iterator
from itertools import accumulate

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...clone import clone
from ...errors import SlimrankError
from ...processes import count, dealt
from ..channels.groups import ChannelMap, Group
from ..layerwise.elimination import Elimination, Reader, Unrepaired, eliminate, ridge_inverse
from ..layerwise.influence import influence
from ..layerwise.rows import Layer, has_rows
from ..layerwise.survey import Read, survey
from ..network.graph import out_of_place
from ..network.resize import CONVS
from . import ReconstructOptions
from .scores import Curve, FilterScores

RIDGE = 1e-2
INFLUENCE_IMAGES = 64


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int = 0,
    seed: int = 0,
    layers: list[str] | None = None,
    options: ReconstructOptions,
) -> FilterScores:
    """Score of a unit: the error that its removal adds, never less than that of one removed earlier; `ties`: the order.

    `batches`: images; their labels are not read. `error[group]`: [share removed, units removed, error] after each removal.
    The last unit, and those that must stay, score what losing them as well would add. Raises SlimrankError for what
    layerwise/survey.py refuses.
    """
    start = time.perf_counter()
    images = sum(len(x) for x, _ in batches)
    if not images:
        raise SlimrankError("ranker reconstruct needs images, and there are none; raise `limit`")

    def of_groups(groups: list[Group]) -> dict[str, tuple[list[float], list[float], Curve]]:
        """Scores, ties and curve of each group, from one pass over the images."""
        found = {}
        for group, readers in _problems(model, channels, groups, every_reader, weights, batches, images, options.memory, seed):
            order, added = eliminate(readers, group.units, group.fixed)
            errors = [0.0, *accumulate(added)]
            curve = [[n / group.units, n, error] for n, error in enumerate(errors)]
            found[group.name] = *_scored(group, order, added, readers), curve
        return found

    model = _plain(model)
    groups = [channels.group(name) for name in channels.chosen(layers)]
    reading = {name for group in groups for name in _reading(model, channels, group)}
    every_reader = {name: units for name, units in channels.reads.items() if name in reading}
    weights = _influence(model, list(every_reader), batches, seed)
    parts = [groups[number :: count()] for number in range(min(count(), len(groups)))]
    every = {name: row for part in dealt(of_groups, parts) for name, row in part.items()}
    rows = {group.name: every[group.name] for group in groups}
    return FilterScores(
        ranker="reconstruct", scores={name: row[0] for name, row in rows.items()}, estimated=True,
        seconds=time.perf_counter() - start, images=images, seed=seed, ties={name: row[1] for name, row in rows.items()},
        comparable=True, error={name: row[2] for name, row in rows.items()},
    )  # fmt: skip


def _plain(model: nn.Module) -> nn.Module:
    """The network with what a layer of the user's own class does beside its operator written out, where torch.fx follows it."""
    if all(has_rows(module) for module in model.modules() if isinstance(module, Layer)):
        return model
    try:
        return out_of_place(clone(model))
    except Exception:  # torch.fx raises whatever forward() raises on a proxy
        return model


def _problems(
    model: nn.Module, channels: ChannelMap, groups: list[Group], names: dict[str, Tensor], weights: dict[str, float],
    batches: Iterable[tuple[Tensor, Tensor]], images: int, memory: int, seed: int,
) -> Iterator[tuple[Group, list[Reader]]]:  # fmt: skip
    """Yield each group with those that read it, as soon as the last of them is surveyed. `names`: all layers that read, of
    these groups or others; `weights`: of their costs."""
    waits = {group.name: _reading(model, channels, group) for group in groups}
    wanted = {name for waiting in waits.values() for name in waiting}
    readers: dict[str, list[Reader]] = {group.name: [] for group in groups}
    with tqdm(total=len(groups), desc="reconstruct", leave=False, disable=None) as bar:
        for name, read in survey(model, names, batches, images, memory, seed, wanted):
            reading = [group for group in groups if name in waits[group.name]]
            for group, reader in _readers(read, channels.reads[name], reading, weights[name]):
                readers[group.name].append(reader)
            for group in reading:
                waits[group.name].remove(name)
                if not waits[group.name]:
                    yield group, readers.pop(group.name)
                    bar.update()


def _influence(model: nn.Module, names: list[str], batches: Iterable[tuple[Tensor, Tensor]], seed: int) -> dict[str, float]:
    """`influence` on the first images, in eval mode."""
    images: list[Tensor] = []
    for x, _ in batches:
        images.append(x[: INFLUENCE_IMAGES - sum(map(len, images))])
        if sum(map(len, images)) == INFLUENCE_IMAGES:
            break
    training = model.training
    model.eval()
    try:
        return influence(model, names, torch.cat(images), seed)
    finally:
        model.train(training)


def _reading(model: nn.Module, channels: ChannelMap, group: Group) -> list[str]:
    """The layers that read a group and lose something with it."""
    return [name for name in channels.readers(group) if _weighs(model, name)]


def _weighs(model: nn.Module, name: str) -> bool:
    """Whether a layer's outputs lose something with its inputs; a conv of groups goes with them."""
    layer = model.get_submodule(name)
    return not (isinstance(layer, CONVS) and layer.groups > 1)


def _readers(read: Read, units: Tensor, groups: list[Group], weight: float) -> Iterator[tuple[Group, Reader]]:
    """A layer as a reader of each group. `units`: of its input channels; `weight`: of its costs."""
    if not has_rows(read.layer):
        variance = read.covariance().flatten()
        for group in groups:
            own = (units >= group.offset) & (units < group.offset + group.units)
            costs = torch.zeros(group.units, dtype=torch.float64)
            costs.index_add_(0, units[own] - group.offset, weight * variance[own] / variance.sum().clamp_min(1e-30))
            yield group, Unrepaired(costs)
        return
    matrix = read.matrix()
    variance = (matrix * (read.covariance() @ matrix)).sum()
    scale = weight / float(variance) if float(variance) > 0 else 0.0
    for channel, xx, part in zip(read.channels, read.second_moments(), matrix, strict=True):
        inverse = ridge_inverse(xx, RIDGE)
        for group in groups:
            yield group, Elimination(inverse, part, _columns(units[channel] - group.offset, group.units), scale)


def _columns(unit: Tensor, units: int) -> Tensor:
    """The columns of each unit, [units, most columns of a unit], -1 where it has fewer. `unit`: of each column."""
    column = ((unit >= 0) & (unit < units)).nonzero().flatten()
    column = column[unit[column].argsort(stable=True)]
    counts = unit[column].bincount(minlength=units)
    place = torch.arange(len(column)) - (counts.cumsum(0) - counts)[unit[column]]
    table = torch.full((units, max(1, int(counts.max()))), -1)
    table[unit[column], place] = column
    return table


def _scored(group: Group, order: list[int], added: list[float], readers: list[Reader]) -> tuple[list[float], list[float]]:
    """Scores and ties of a group's units, [units] each; `readers`: without the units in `order`."""
    left = torch.stack([reader.costs() for reader in readers]).sum(0).tolist()
    stay = sorted(set(range(group.units)) - set(order), key=lambda unit: (left[unit], unit))
    scores, ties = [0.0] * group.units, [0.0] * group.units
    costs = [*added, *(left[unit] for unit in stay)]
    for place, (unit, cost) in enumerate(zip([*order, *stay], accumulate(costs, max), strict=True)):
        scores[unit], ties[unit] = cost, float(place)
    return scores, ties
