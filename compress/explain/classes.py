"""The features that each class lives on, how far classes share them, and what noise in their place costs.

Influential features are those of Badola et al., Algorithm 1 (channels/features.py). The rest says what they are worth:

share: of the class's logit on its own training images, less what all classes have in common (W less its mean over
classes: what softmax sees), the part that the feature carries on average.
overlap: mutual information of the classes' index sets, as the authors compare them (mean over all ordered pairs, the diagonal
included; the diagonal alone gives 0.027 at 5 of 64 features and 10 classes) and without the diagonal.
noise: a class's accuracy with its influential features replaced by noise, and with all others replaced. Noise is normal, with
each feature's own mean and standard deviation over the training images: our choice.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..channels.features import Batches, Moments, Votes
from ..head.select import centred

DRAWS = 5  # of noise for each image


class Means:
    """Sum of the features over each class's images: `sums` [classes, features], `images` [classes]."""

    def __init__(self, classes: int):
        self.classes, self.sums = classes, torch.empty(0)
        self.images = torch.zeros(classes, dtype=torch.long)

    def add(self, x: Tensor, labels: Tensor) -> None:
        x, labels = x.double().cpu(), labels.cpu()
        if not self.sums.numel():
            self.sums = torch.zeros(self.classes, x.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, labels, x)
        self.images += torch.bincount(labels, minlength=self.classes)

    @property
    def means(self) -> Tensor:
        return self.sums / self.images.clamp_min(1)[:, None]


@dataclass(frozen=True, kw_only=True)
class ClassFeatures:
    """What one class lives on. `features`: [feature, weight, votes (share of the class's images), share of the logit], largest
    share first. `carried`: share of the logit that they carry together; shares are None for a class without images or logits.
    `shared_with`: [class, features in common], most first.
    """

    name: str
    images: int
    features: list[tuple[int, float, float, float | None]]
    carried: float | None
    shared_with: list[tuple[str, int]]


def class_features(
    names: list[str], linear: nn.Linear, votes: Votes, means: Means, k2: int, most: int = 5
) -> list[ClassFeatures]:
    """Every class's k2 influential features, and the `most` classes that share most of them."""
    bias = torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias.detach().cpu()
    weight, _ = centred(linear.weight.detach().cpu().double(), bias.double())
    chosen = votes.choose(k2)
    carried = weight * means.means
    whole = carried.sum(1, keepdim=True)
    defined = (votes.images > 0) & (whole[:, 0].abs() > 1e-12)  # a dead network's logits carry nothing
    share = torch.where(defined[:, None], carried / whole, torch.nan)
    member = membership(chosen, weight.shape[1])
    common = (member @ member.T).fill_diagonal_(0)
    classes = []
    for c, name in enumerate(names):
        order = chosen[c][torch.argsort(share[c, chosen[c]], descending=True, stable=True)]
        images = int(votes.images[c])
        rows = [
            (
                j,
                round(float(weight[c, j]), 4),
                round(int(votes.histogram[c, j]) / max(1, images), 4),
                round(float(share[c, j]), 4) if defined[c] else None,
            )
            for j in order.tolist()
        ]
        nearest = common[c].topk(min(most, len(names))).indices.tolist()
        classes.append(
            ClassFeatures(
                name=name,
                images=images,
                features=rows,
                carried=round(float(share[c, order].sum()), 4) if defined[c] else None,
                shared_with=[(names[i], int(common[c, i])) for i in nearest if common[c, i]],
            )
        )
    return classes


def membership(indices: Tensor, features: int) -> Tensor:
    """Turn index sets ([classes, k]) into vectors: float64 [classes, features], 1 where a class has the feature."""
    return torch.zeros(len(indices), features, dtype=torch.float64).scatter_(1, indices, 1.0)


@dataclass(frozen=True, kw_only=True)
class SetOverlap:
    """Mean mutual information, in nats, of the index sets of two classes; `chance`: of random sets of the same size, off the
    diagonal. `common`: features in common, mean over pairs of different classes."""

    all_pairs: float
    different_classes: float
    chance: float
    common: float


def overlap(indices: Tensor, features: int, seed: int = 0) -> SetOverlap:
    """Measure how far classes share features. `indices`: int64 [classes, k] into `features`; `seed`: of the random sets."""
    information = pairwise_information(membership(indices, features))
    generator = torch.Generator().manual_seed(seed)
    random = torch.rand(indices.shape[0], features, generator=generator).topk(indices.shape[1], 1).indices
    c = len(indices)
    off = ~torch.eye(c, dtype=torch.bool)
    member = membership(indices, features)
    if c == 1:
        return SetOverlap(all_pairs=float(information.mean()), different_classes=0.0, chance=0.0, common=0.0)
    return SetOverlap(
        all_pairs=float(information.mean()),
        different_classes=float(information[off].mean()),
        chance=float(pairwise_information(membership(random, features))[off].mean()),
        common=float((member @ member.T)[off].mean()),
    )


def pairwise_information(member: Tensor) -> Tensor:
    """Mutual information, in nats, of every two rows of a 0/1 matrix [classes, features], taken as samples over features."""
    m = member.shape[1]
    p = member.mean(1)
    both = member @ member.T / m
    total = torch.zeros_like(both)
    for a, b, joint in (
        (p, p, both),
        (p, 1 - p, p[:, None] - both),
        (1 - p, p, p[None, :] - both),
        (1 - p, 1 - p, 1 - p[:, None] - p[None, :] + both),
    ):
        apart = a[:, None] * b[None, :]
        total += torch.where(joint > 1e-12, joint * (joint.clamp_min(1e-300) / apart.clamp_min(1e-300)).log(), 0.0)
    return total


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Accuracy on each class's own images (null where it has none): as it is, with its influential features replaced by
    noise, and with all the others replaced; the mean of DRAWS draws."""

    whole: list[float | None]
    influential_replaced: list[float | None] = field(repr=False)
    others_replaced: list[float | None] = field(repr=False)
    random_replaced: list[float | None] = field(repr=False)  # as many features at random

    def mean(self, key: str) -> float:
        """Mean over the classes that have images. `key`: one of the fields."""
        values: list[float] = [value for value in getattr(self, key) if value is not None]
        return sum(values) / max(1, len(values))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **{f"mean_{key}": self.mean(key) for key in vars(self)}}


def noise_test(batches: Batches, linear: nn.Linear, indices: Tensor, moments: Moments, seed: int = 0) -> Noise:
    """Replace features by noise, one pass over what the classifier reads. `indices`: [classes, k]; `moments`: over training."""
    classes, m = linear.weight.shape
    generator = torch.Generator().manual_seed(seed)
    mean, spread = moments.mean.float(), moments.covariance.diagonal().clamp_min(0).sqrt().float()
    mine = membership(indices, m).bool()
    other = torch.rand(classes, m, generator=generator).topk(indices.shape[1], 1).indices
    random = membership(other, m).bool()
    weight, bias = linear.weight.detach().cpu(), None if linear.bias is None else linear.bias.detach().cpu()
    images = torch.zeros(classes)
    hits = torch.zeros(4, classes)
    for x, labels in batches:
        x, labels = x.float().cpu(), labels.cpu()
        replaced = (torch.zeros_like(mine), mine, ~mine, random)
        for _ in range(DRAWS):
            noise = mean + spread * torch.randn(x.shape, generator=generator)
            images += torch.bincount(labels, minlength=classes)
            for row, out in zip(hits, replaced, strict=True):
                right = F.linear(torch.where(out[labels], noise, x), weight, bias).argmax(1) == labels
                row += torch.bincount(labels[right], minlength=classes)
    shares = [[None if n == 0 else round(float(h / n), 4) for h, n in zip(row, images, strict=True)] for row in hits]
    whole, influential_replaced, others_replaced, random_replaced = shares
    return Noise(
        whole=whole,
        influential_replaced=influential_replaced,
        others_replaced=others_replaced,
        random_replaced=random_replaced,
    )
