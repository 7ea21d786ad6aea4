"""Choose the features that a class keeps.

histogram: the most frequent among the k1 largest of its training images (the paper's Algorithm 1).
weights, weights+histogram: largest |W|, and largest |W| times votes: the paper's own losing variants.
contribution: largest |W| times the feature's spread (standard deviation).
gates: the class's widest gates, from training with --csg (gates.py).
omp: orthogonal matching pursuit on the dense logit, from second moments.
What all classes share moves no softmax, so contribution and omp read W less its mean over classes.
"""

import torch
from torch import Tensor

from ...errors import SlimrankError
from ..channels.features import Moments, Votes
from .options import check_select

CHUNK = 2**25  # numbers at once


def centred(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the dense layer's mean over classes, which moves no softmax."""
    return weight - weight.mean(0), bias - bias.mean()


def choose_features(select: str, weight: Tensor, moments: Moments, votes: Votes | None, k2: int) -> Tensor:
    """Choose k2 features for each class: int64 [classes, k2], rising. `weight`: the dense layer's, [classes, features]."""
    check_select(select)
    if not 1 <= k2 <= weight.shape[1]:
        raise SlimrankError(f"`k2` is {k2}, the classifier reads {weight.shape[1]} features; choose 1 to {weight.shape[1]}")
    if select == "histogram":
        assert votes is not None
        return votes.choose(k2)
    if select == "omp":
        return pursuit(weight - weight.mean(0), moments.covariance, k2)
    worth = weight.abs()
    if select == "weights+histogram":
        assert votes is not None
        worth = worth * votes.histogram
    elif select == "contribution":
        worth = saliency(weight, moments)
    return worth.topk(k2, 1).indices.sort(1).values


def saliency(weight: Tensor, moments: Moments) -> Tensor:
    """Measure the variance that each feature alone brings into each logit, [classes, features]: (W less its mean)^2 var(x)."""
    return (weight - weight.mean(0)) ** 2 * moments.covariance.diagonal().clamp_min(0).to(weight)


def pursuit(weight: Tensor, covariance: Tensor, k: int) -> Tensor:
    """Choose features by orthogonal matching pursuit on each logit: int64 [classes, k], rising.

    The logit of a class is w x; in each step the feature that explains most of the variance that is left joins, after
    what the chosen ones already explain has been taken out of it (orthogonal least squares, the sharper of the two forms
    that go by the name). Nothing but the covariance is needed: with D the chosen directions' covariances with all
    features, the residual's covariance r and the features' own variances v are updated by one row of D a step.
    """
    classes, features = weight.shape
    chosen = torch.empty(classes, k, dtype=torch.long)
    for rows in torch.arange(classes).split(max(1, CHUNK // (k * features))):
        r = weight[rows].to(covariance) @ covariance
        v = covariance.diagonal().expand_as(r).clone()
        least = 1e-9 * float(covariance.diagonal().max())
        directions = r.new_zeros(len(rows), k, features)
        every = torch.arange(len(rows))
        for step in range(k):
            gain = torch.where(v > least, r**2 / v.clamp_min(least), 0.0)
            gain[every[:, None], chosen[rows, :step]] = -1.0
            j = gain.argmax(1)
            chosen[rows, step] = j
            new = covariance[j] - torch.einsum("ci,cim->cm", directions[every, :step, j], directions[:, :step])
            new = new / new[every, j].clamp_min(least).sqrt()[:, None]
            live = (v[every, j] > least)[:, None]
            new = torch.where(live, new, 0.0)
            r = r - (r[every, j] / v[every, j].clamp_min(least).sqrt())[:, None] * new
            v = v - new**2
            directions[:, step] = new
    return chosen.sort(1).values
