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
from .cluster import SAMPLE, assigned, dealt, sampled, ward
from .fit import fit_adam
from .select import CHUNK

KMEANS_ROUNDS = 20


def confusable(weight: Tensor, covariance: Tensor, class_groups: int, seed: int = 0) -> Tensor:
    """Order the classes so that those whose logits move together stand together: runs, as even as can be, are the groups.

    weight [classes, features], covariance [features, features]; returns the order, [classes].
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()).to(weight)
    rows = torch.addmm(-(weight.mean(0) @ root), weight, root)
    rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    sample = sampled(rows, max(SAMPLE, 4 * class_groups), seed)
    room = torch.tensor(sizes(len(sample), class_groups))
    group = dealt(ward(sample), room)
    for _ in range(KMEANS_ROUNDS):
        next_group = assigned(_nearness(sample, _centres(sample, group, room)), room)
        if bool((next_group == group).all()):
            break
        group = next_group
    if sample is not rows:
        group = assigned(_nearness(rows, _centres(sample, group, room)), torch.tensor(sizes(len(rows), class_groups)))
    return torch.argsort(group, stable=True)


def mean_scores(weight: Tensor, bias: Tensor, order: Tensor, class_groups: int) -> tuple[Tensor, Tensor]:
    """Score each group by the mean of its dense logits: (weight [groups, features], bias [groups]). Needs no images."""
    parts = order.split(sizes(len(order), class_groups))
    return torch.stack([weight[rows].mean(0) for rows in parts]), torch.stack([bias[rows].mean() for rows in parts])


def trained_scores(
    weight: Tensor, bias: Tensor, order: Tensor, class_groups: int, images: Cached, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Train scores that give each group the share of the dense layer's softmax that lies in it, on cached features."""
    scorer = nn.Linear(weight.shape[1], class_groups)
    scorer.weight.data, scorer.bias.data = (t.clone() for t in mean_scores(weight, bias, order, class_groups))
    group = dealt(order, torch.tensor(sizes(len(order), class_groups)))
    shares = torch.cat(
        [
            torch.zeros(len(x), class_groups).index_add_(1, group, F.linear(x, weight, bias).softmax(1))
            for x in images.x.split(max(1, CHUNK // len(weight)))
        ]
    )

    def loss(x: Tensor, row: Tensor) -> Tensor:
        return F.kl_div(scorer(x).log_softmax(1), shares[row], reduction="batchmean")

    numbered = Cached(images.x, torch.arange(len(images.x)))
    fit_adam(scorer, loss, numbered, epochs=10, lr=2e-3, batch=256, seed=seed)
    return scorer.weight.detach(), scorer.bias.detach()


def fewest(scores: tuple[Tensor, Tensor], order: Tensor, wanted: Tensor, x: Tensor, share: float) -> tuple[int, float]:
    """Count the groups to probe until they hold the class `wanted` [images] on a share of the images x [images, features];
    also the share on which they do."""
    class_groups = len(scores[0])
    group = dealt(order, torch.tensor(sizes(len(order), class_groups)))
    place = (F.linear(x, *scores).argsort(1, descending=True) == group[wanted][:, None]).float().argmax(1)
    held = torch.bincount(place, minlength=class_groups).cumsum(0) / len(place)
    probe = int((held < share - 1e-9).sum()) + 1
    return probe, float(held[probe - 1])


def probe_recall(head: SubspaceLinear, seen: Cached) -> float:
    """Measure on what share of images the groups that are computed hold the class that all groups together decide on."""
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
    """Score centres for each row, [rows, centres]: half of |row|^2 less the squared distance; the nearest scores most."""
    return torch.addmm(-(centres**2).sum(1) / 2, rows, centres.T)
