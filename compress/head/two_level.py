"""The upper level of a two-level head: groups of classes that are confused with one another, and which of them to compute.

Badola et al. leave a tree over the classes to future work; this is the plainest one. Classes whose logits move together
share a group (balanced k-means of the rows of W C^1/2, C the features' covariance: their inner products are the logits'
covariances), so that what an image is taken for and what it is nearly taken for lie in few groups. A linear layer scores the
groups; the head then computes the best of them only (`SubspaceLinear`, probe).
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels.features import Cached
from ..network.subspace import SubspaceLinear, sizes
from .cluster import SAMPLE, assigned, dealt, ward
from .fit import fit_adam
from .select import CHUNK

KMEANS_ROUNDS = 20


def confusable(weight: Tensor, covariance: Tensor, groups: int, seed: int = 0) -> Tensor:
    """[classes]: classes in an order whose runs, as even as can be, are the groups. `weight` [classes, features]."""
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()).to(weight)
    rows = torch.addmm(-(weight.mean(0) @ root), weight, root)
    rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    part = rows
    if len(rows) > max(SAMPLE, 4 * groups):
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        part = rows[chosen[: max(SAMPLE, 4 * groups)].sort().values]
    room = torch.tensor(sizes(len(part), groups))
    group = dealt(ward(part), room)
    for _ in range(KMEANS_ROUNDS):
        again = assigned(_nearness(part, _centres(part, group, room)), room)
        if bool((again == group).all()):
            break
        group = again
    if part is not rows:
        group = assigned(_nearness(rows, _centres(part, group, room)), torch.tensor(sizes(len(rows), groups)))
    return torch.argsort(group, stable=True)


def mean_scores(weight: Tensor, bias: Tensor, order: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The mean of a group's dense logits, as (weight [groups, features], bias [groups]): what there is without images."""
    parts = order.split(sizes(len(order), groups))
    return torch.stack([weight[rows].mean(0) for rows in parts]), torch.stack([bias[rows].mean() for rows in parts])


def trained_scores(
    weight: Tensor, bias: Tensor, order: Tensor, groups: int, images: Cached, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Group scores trained to give each group the share of the dense layer's softmax that lies in it, on cached features."""
    made = nn.Linear(weight.shape[1], groups)
    made.weight.data, made.bias.data = (t.clone() for t in mean_scores(weight, bias, order, groups))
    group = dealt(order, torch.tensor(sizes(len(order), groups)))
    shares = torch.cat(
        [
            torch.zeros(len(x), groups).index_add_(1, group, F.linear(x, weight, bias).softmax(1))
            for x in images.x.split(max(1, CHUNK // len(weight)))
        ]
    )

    def loss(x: Tensor, row: Tensor) -> Tensor:
        return F.kl_div(made(x).log_softmax(1), shares[row], reduction="batchmean")

    numbered = Cached(images.x, torch.arange(len(images.x)))
    fit_adam(made, loss, numbered, epochs=10, lr=2e-3, batch=256, seed=seed)
    return made.weight.detach(), made.bias.detach()


def fewest(scores: tuple[Tensor, Tensor], order: Tensor, wanted: Tensor, x: Tensor, share: float) -> tuple[int, float]:
    """How many groups hold the class `wanted` [images] on a share of the images x [images, features], and on what share."""
    groups = len(scores[0])
    group = dealt(order, torch.tensor(sizes(len(order), groups)))
    place = (F.linear(x, *scores).argsort(1, descending=True) == group[wanted][:, None]).float().argmax(1)
    held = torch.bincount(place, minlength=groups).cumsum(0) / len(place)
    few = int((held < share - 1e-9).sum()) + 1
    return few, float(held[few - 1])


def probe_recall(head: SubspaceLinear, seen: Cached) -> float:
    """Share of images on which the groups that are computed hold the class that all groups together decide on."""
    whole = copy.copy(head)
    whole.probe = 0
    order = torch.arange(head.out_features) if head.order is None else head.order
    group = dealt(order, torch.tensor(head.sizes))
    hits = 0
    with torch.inference_mode():
        for x in seen.x.split(1000):
            probed = head.probed(x if head.reorder is None else x[:, head.reorder])
            hits += int((group[whole(x).argmax(1)][:, None] == probed).any(1).sum())
    return hits / len(seen.x)


def _centres(rows: Tensor, group: Tensor, room: Tensor) -> Tensor:
    return rows.new_zeros(len(room), rows.shape[1]).index_add_(0, group, rows) / room[:, None]


def _nearness(rows: Tensor, centres: Tensor) -> Tensor:
    """[rows, centres]: half of what the squared distance lacks of |row|^2."""
    return torch.addmm(-(centres**2).sum(1) / 2, rows, centres.T)
