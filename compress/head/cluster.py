"""Groups of classes that share tiles of adjacent features, and the features' new order, by balanced co-clustering."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import SlimrankError
from ..network.subspace import sizes
from .select import CHUNK

HUNGARIAN_LIMIT = 1024  # items that are assigned to bins at the optimum; more go greedily
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
    saliency: Tensor, class_groups: int, tile: int, k: int, seed: int = 0,
    *, adjacent: bool = False, order: Tensor | None = None,
) -> Subspaces:  # fmt: skip
    """Divide classes into groups of equal size and features into tiles of `tile`; each group reads k / tile of the tiles.

    saliency [classes, features], not negative: what a class loses with a feature. The sum that the groups keep is climbed
    by turns: every group takes its best tiles; features go to the tiles whose groups want them; classes go to the group
    whose tiles serve them; each is a balanced assignment, so the sum never falls. Begins with Ward's clustering of the
    classes, then of the features. With many classes the tiles are found on a sample of them.

    `order` [classes]: the groups are the runs of classes in this order (two_level.py). `adjacent`: of classes in their own
    order, so that no logit moves at inference.
    """
    classes, features = saliency.shape
    if not 1 <= class_groups <= classes:
        raise SlimrankError(f"`groups` is {class_groups}, the classifier has {classes} classes; choose 1 to {classes}")
    if features % tile or k % tile or not tile <= k <= features:
        raise SlimrankError(f"tiles of {tile} features do not divide `k2` {k} and the classifier's {features} features")
    if adjacent or order is not None:
        rows = torch.arange(classes) if order is None else order
        of_groups = _summed(saliency, dealt(rows, torch.tensor(sizes(classes, class_groups))), class_groups)
        alone = cocluster(of_groups, class_groups, tile, k, seed)
        back = alone.rows(class_groups).argsort()
        return Subspaces(alone.index[back], order, alone.reorder, alone.captured)
    sample = sampled(saliency, max(SAMPLE, 4 * class_groups), seed)
    group, place, taken = _climbed(sample, class_groups, tile, k)
    wanted = _summed(sample, group, class_groups)
    if sample is not saliency:
        group = assigned(saliency @ taken[:, place].T, torch.tensor(sizes(classes, class_groups)))
        wanted = _summed(saliency, group, class_groups)
        taken = _best(wanted, place, features // tile, k // tile)
    reorder = torch.argsort(place, stable=True)
    first = taken.nonzero()[:, 1].view(class_groups, -1)  # tile numbers of each group, rising
    spots = (first[:, :, None] * tile + torch.arange(tile)).flatten(1)
    captured = float((wanted * taken[:, place]).sum() / saliency.sum().clamp_min(1e-30))
    return Subspaces(reorder[spots], torch.argsort(group, stable=True), reorder, captured)


def sampled(rows: Tensor, most: int, seed: int) -> Tensor:
    """Draw at most so many of the rows, kept in their order; the same tensor where there are no more."""
    if len(rows) <= most:
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most]
    return rows[chosen.sort().values]


def _climbed(saliency: Tensor, class_groups: int, tile: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Co-cluster by turns: the group of each class, the tile of each feature, and which tiles a group takes [groups, tiles]."""
    classes, features = saliency.shape
    group_sizes, tile_sizes = torch.tensor(sizes(classes, class_groups)), torch.full((features // tile,), tile)
    group = dealt(ward(saliency.sqrt()), group_sizes)
    wanted = _summed(saliency, group, class_groups)
    place = dealt(ward(wanted.sqrt().T), tile_sizes)
    taken, best = _best(wanted, place, len(tile_sizes), k // tile), -1.0
    for _ in range(CLUSTER_ROUNDS):
        kept = float((wanted * taken[:, place]).sum())
        if kept <= best * (1 + 1e-6):
            break
        best = kept
        place = assigned(wanted.T @ taken, tile_sizes)
        taken = _best(wanted, place, len(tile_sizes), k // tile)
        group = assigned(saliency @ taken[:, place].T, group_sizes)
        wanted = _summed(saliency, group, class_groups)
        taken = _best(wanted, place, len(tile_sizes), k // tile)
    return group, place, taken


def assigned(value: Tensor, room: Tensor) -> Tensor:
    """Assign each item to a bin, at most room[bin] to each, for a large sum of value [items, bins].

    At the optimum (Hungarian) for up to 1,024 items, greedily beyond. Returns the bin of each item.
    """
    return _optimally_assigned(value, room) if len(value) <= HUNGARIAN_LIMIT else _greedily_assigned(value, room)


def _optimally_assigned(value: Tensor, room: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    owner = torch.repeat_interleave(torch.arange(value.shape[1]), room)
    row, column = linear_sum_assignment(value[:, owner].double().numpy(), maximize=True)
    bin_of = torch.empty(len(value), dtype=torch.long)
    bin_of[torch.from_numpy(row)] = owner[torch.from_numpy(column)]
    return bin_of


def _greedily_assigned(value: Tensor, room: Tensor) -> Tensor:
    """Items propose to their best bin that has room; where too many do, those that lose most without it go first."""
    items, bins = value.shape
    bin_of, room, left = torch.full((items,), -1), room.clone(), torch.arange(items)
    while len(left):
        with_room = room.nonzero().flatten()
        best, regret = _best_and_regret(value, left, with_room)
        wanted = with_room[best]
        order = torch.argsort(regret, descending=True, stable=True)
        order = order[torch.argsort(wanted[order], stable=True)]
        by_bin = wanted[order]
        starts = torch.searchsorted(by_bin, torch.arange(bins))
        rank = torch.arange(len(order)) - starts[by_bin]
        placed = order[rank < room[by_bin]]
        bin_of[left[placed]] = wanted[placed]
        room -= torch.bincount(wanted[placed], minlength=bins)
        left = left[bin_of[left] < 0]
    return bin_of


def _best_and_regret(value: Tensor, items: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `bins` each of `items` gains most from, and what it loses in the second best; some items at once."""
    first, regret = [], []
    for part in items.split(max(1, CHUNK // value.shape[1])):
        two = value[part][:, bins].topk(min(2, len(bins)), 1)
        first.append(two.indices[:, 0])
        regret.append(two.values[:, 0] - two.values[:, -1])
    return torch.cat(first), torch.cat(regret)


def ward(rows: Tensor) -> Tensor:
    """Order rows by the leaves of Ward's tree of their directions."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows) < 2:
        return torch.arange(len(rows))
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.from_numpy(leaves_list(linkage(unit.double().numpy(), "ward")).astype(np.int64))


def dealt(order: Tensor, room: Tensor) -> Tensor:
    """Deal items into bins in `order`, room[bin] to each; the bin of each item."""
    bins = torch.empty_like(order)
    bins[order] = torch.repeat_interleave(torch.arange(len(room)), room)
    return bins


def _summed(saliency: Tensor, group: Tensor, class_groups: int) -> Tensor:
    return saliency.new_zeros(class_groups, saliency.shape[1]).index_add_(0, group, saliency)


def _best(wanted: Tensor, place: Tensor, tiles: int, take: int) -> Tensor:
    """[groups, tiles], one where a group takes a tile: those that keep most of what the group wants."""
    worth = wanted.new_zeros(len(wanted), tiles).index_add_(1, place, wanted)
    return torch.zeros_like(worth).scatter_(1, worth.topk(take, 1).indices, 1.0)
