"""Groups of classes that share tiles of adjacent features: balanced co-clustering, and the features' new order."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..channels.masking import captured
from ..network.resize import replace_tensor
from ..network.subspace import sizes
from .select import CHUNK

EXACT = 1024  # items that are assigned to bins at the optimum; more go greedily
SAMPLE = 4096  # classes that the tiles are found on
CLUSTER_ROUNDS = 30


@dataclass(frozen=True)
class Subspaces:
    """Which features each group of classes reads; groups as in `SubspaceLinear`, index in the input's feature numbers."""

    index: Tensor  # [groups, k]
    order: Tensor | None = None  # [classes]: the class of each row, group after group
    reorder: Tensor | None = None  # [features]: the feature at each place
    captured: float | None = None  # share of the saliency that the groups read

    def rows(self, classes: int) -> Tensor:
        return torch.arange(classes) if self.order is None else self.order


def cocluster(
    saliency: Tensor, groups: int, tile: int, k: int, seed: int = 0, *, adjacent: bool = False, order: Tensor | None = None
) -> Subspaces:
    """Classes into `groups` of equal size, features into tiles of `tile`, k / tile tiles for each group.

    saliency [classes, features], not negative: what a class loses with a feature. The sum that the groups keep is climbed
    by turns: every group takes its best tiles; features go to the tiles whose groups want them; classes go to the group
    whose tiles serve them; each is a balanced assignment, so the sum never falls. Begins with Ward's clustering of the
    classes, then of the features. With many classes the tiles are found on a sample of them.

    `order` [classes]: the groups are the runs of classes in this order (coarse.py). `adjacent`: of classes in their own
    order, so that no logit moves at inference.
    """
    classes, m = saliency.shape
    if not 1 <= groups <= classes:
        raise SlimrankError(f"`groups` is {groups}, the classifier has {classes} classes; choose 1 to {classes}")
    if m % tile or k % tile or not tile <= k <= m:
        raise SlimrankError(f"tiles of {tile} features do not divide `k2` {k} and the classifier's {m} features")
    part = saliency
    if adjacent or order is not None:
        rows = torch.arange(classes) if order is None else order
        part = _summed(saliency, dealt(rows, torch.tensor(sizes(classes, groups))), groups)
        found = cocluster(part, groups, tile, k, seed)
        back = found.rows(groups).argsort()
        return Subspaces(found.index[back], order, found.reorder, found.captured)
    if classes > max(SAMPLE, 4 * groups):
        chosen = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))[: max(SAMPLE, 4 * groups)]
        part = saliency[chosen.sort().values]
    group = dealt(ward(part.sqrt()), torch.tensor(sizes(len(part), groups)))
    wanted = _summed(part, group, groups)
    tiles = torch.full((m // tile,), tile)
    place = dealt(ward(wanted.sqrt().T), tiles)
    taken, best = _best(wanted, place, len(tiles), k // tile), -1.0
    for _ in range(CLUSTER_ROUNDS):
        kept = float((wanted * taken[:, place]).sum())
        if kept <= best * (1 + 1e-6):
            break
        best = kept
        place = assigned(wanted.T @ taken, tiles)
        taken = _best(wanted, place, len(tiles), k // tile)
        group = assigned(part @ taken[:, place].T, torch.tensor(sizes(len(part), groups)))
        wanted = _summed(part, group, groups)
        taken = _best(wanted, place, len(tiles), k // tile)
    if part is not saliency:
        group = assigned(saliency @ taken[:, place].T, torch.tensor(sizes(classes, groups)))
        wanted = _summed(saliency, group, groups)
        taken = _best(wanted, place, len(tiles), k // tile)
    reorder = torch.argsort(place, stable=True)
    first = taken.nonzero()[:, 1].view(groups, -1)  # tile numbers of each group, rising
    spots = (first[:, :, None] * tile + torch.arange(tile)).flatten(1)
    captured = float((wanted * taken[:, place]).sum() / saliency.sum().clamp_min(1e-30))
    return Subspaces(reorder[spots], torch.argsort(group, stable=True), reorder, captured)


def assigned(value: Tensor, room: Tensor) -> Tensor:
    """The bin of each item, at most room[bin] a bin, for a large sum of value [items, bins]: at the optimum (Hungarian)
    for up to 1,024 items; beyond, items propose to their best bin that has room, and those that lose most without go first.
    """
    items, bins = value.shape
    if items <= EXACT:
        from scipy.optimize import linear_sum_assignment

        owner = torch.repeat_interleave(torch.arange(bins), room)
        row, column = linear_sum_assignment(value[:, owner].double().numpy(), maximize=True)
        found = torch.empty(items, dtype=torch.long)
        found[torch.from_numpy(row)] = owner[torch.from_numpy(column)]
        return found
    found = torch.full((items,), -1)
    room = room.clone()
    left = torch.arange(items)
    while len(left):
        open_ = room.nonzero().flatten()
        first, regret = _first(value, left, open_)
        bin_ = open_[first]
        order = torch.argsort(regret, descending=True, stable=True)
        order = order[torch.argsort(bin_[order], stable=True)]
        sorted_bin = bin_[order]
        starts = torch.searchsorted(sorted_bin, torch.arange(bins))
        rank = torch.arange(len(order)) - starts[sorted_bin]
        takes = order[rank < room[sorted_bin]]
        found[left[takes]] = bin_[takes]
        room -= torch.bincount(bin_[takes], minlength=bins)
        left = left[found[left] < 0]
    return found


def _first(value: Tensor, items: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `bins` each of `items` gains most from, and what it loses in the second best; some items at once."""
    first, regret = [], []
    for part in items.split(max(1, CHUNK // value.shape[1])):
        two = value[part][:, bins].topk(min(2, len(bins)), 1)
        first.append(two.indices[:, 0])
        regret.append(two.values[:, 0] - two.values[:, -1])
    return torch.cat(first), torch.cat(regret)


def fold(model: nn.Module, channels: ChannelMap, layer: str, example: Tensor, order: Tensor) -> nn.Module | None:
    """A copy of the model in which feature `order[i]` comes i-th to `layer`: the channels before it, written in that order.

    Costs nothing at inference; what `layer` reads of `example` is compared with what it read. None where the features are
    not the channels of one group, one position each (a flattened map, a concat): no order of channels then gives that
    order of features. `layer` itself is left as it is.
    """
    units = channels.reads[layer]
    group = next((g for g in channels.groups if g.offset <= int(units[0]) < g.offset + g.units), None)
    if group is None or sorted(units.tolist()) != list(range(group.offset, group.offset + group.units)):
        return None
    moved = torch.arange(sum(g.units for g in channels.groups))  # the unit that comes where a unit stood
    moved[units] = units[order]
    made = copy.deepcopy(model)
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, axes in channels.axes.items():
        if name.rpartition(".")[0] == layer:
            continue
        tensor = tensors[name]
        for axis, labels in axes.items():
            source = _sources(labels, moved)
            if source is None:
                return None
            tensor = tensor.detach().index_select(axis, source.to(tensor.device))
        replace_tensor(made, name, tensor)
    for name, module in made.named_modules():
        if hasattr(module, "permute_channels") and name in channels.reads:
            sides = _sources(channels.reads[name], moved), _sources(channels.writes[name], moved)
            if sides[0] is None or sides[1] is None:
                return None
            module.permute_channels(*sides)
    with torch.inference_mode(), captured(model, [layer]) as before, captured(made, [layer]) as after:
        model.eval()(example)
        made.eval()(example)
    old, new = before[layer][:, order], after[layer]
    return made if bool((old - new).abs().max() <= 1e-3 * old.abs().max()) else None


def _sources(labels: Tensor, moved: Tensor) -> Tensor | None:
    """For each channel the one that takes its place; None where a unit stands more than once and another does not."""
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


def ward(rows: Tensor) -> Tensor:
    """Rows in the order of the leaves of Ward's tree, by direction."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows) < 2:
        return torch.arange(len(rows))
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.from_numpy(leaves_list(linkage(unit.double().numpy(), "ward")).astype(np.int64))


def dealt(order: Tensor, room: Tensor) -> Tensor:
    """The bin of each item when items fill the bins in `order`."""
    bins = torch.empty_like(order)
    bins[order] = torch.repeat_interleave(torch.arange(len(room)), room)
    return bins


def _summed(saliency: Tensor, group: Tensor, groups: int) -> Tensor:
    return saliency.new_zeros(groups, saliency.shape[1]).index_add_(0, group, saliency)


def _best(wanted: Tensor, place: Tensor, tiles: int, take: int) -> Tensor:
    """[groups, tiles], one where a group takes a tile: those that keep most of what the group wants."""
    worth = wanted.new_zeros(len(wanted), tiles).index_add_(1, place, wanted)
    return torch.zeros_like(worth).scatter_(1, worth.topk(take, 1).indices, 1.0)
