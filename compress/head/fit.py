"""The weights of the subspaces: the dense ones as they are, least squares of the dense logits, or a few seconds' training.

All of it works on what the classifier reads; no conv layer runs.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..channels.features import Cached, Moments
from ..network.subspace import SubspaceLinear, sizes
from .cluster import Subspaces
from .select import CHUNK

HeadModule = TypeVar("HeadModule", bound=torch.nn.Module)
DISTILLED_SHARES = (1.0, 0.5, 0.0)  # of the loss that is distillation; the rest is cross-entropy


def truncated(weight: Tensor, bias: Tensor, spaces: Subspaces) -> tuple[Tensor, Tensor]:
    """Take the dense weights at the chosen features (the paper's head): ([classes, k], [classes]), rows by group."""
    rows = spaces.rows(len(weight))
    index = spaces.index.repeat_interleave(torch.tensor(sizes(len(weight), len(spaces.index))), 0)
    return weight[rows].gather(1, index), bias[rows]


def refitted(weight: Tensor, bias: Tensor, moments: Moments, spaces: Subspaces) -> tuple[Tensor, Tensor]:
    """Fit the logits w x + b by least squares on the kept features and a constant.

    Normal equations from the covariance C: C[J, J] w_J = C[J, :] w. A ridge of 1e-8 of the mean variance keeps them
    solvable, 1e-2 where there are no more images than features a class. Rows by group.
    """
    covariance, mean = moments.covariance, moments.mean
    k, m = spaces.index.shape[1], len(mean)
    ridge = (1e-8 if moments.n > k else 1e-2) * float(covariance.diagonal().mean()) + 1e-30
    rows = spaces.rows(len(weight))
    fits: list[Tensor] = []
    begin = 0
    for size, count in _runs(sizes(len(weight), len(spaces.index))):
        done = len(fits)
        for index in spaces.index[done : done + count].split(max(1, CHUNK // (k * k + size * m))):
            mine = rows[begin : begin + size * len(index)]
            begin += len(mine)
            normal = covariance[index[:, :, None], index[:, None, :]] + ridge * torch.eye(k, dtype=covariance.dtype)
            right = (weight[mine].to(covariance) @ covariance).view(len(index), size, m)
            right = right.gather(2, index[:, None, :].expand(-1, size, -1))
            fits += list(torch.linalg.solve(normal, right.transpose(1, 2)).transpose(1, 2))
    fitted = torch.cat(fits)
    wide = spaces.index.repeat_interleave(torch.tensor(sizes(len(weight), len(spaces.index))), 0)
    constant = bias[rows].double() + weight[rows].double() @ mean - (fitted * mean[wide]).sum(1)
    return fitted, constant


@dataclass(frozen=True)
class Trained:
    """What training a head did: the share of distillation, validation top-1 before and after, seconds."""

    share: float | None
    top1_before: float
    top1_after: float
    seconds: float


def trained(
    head: HeadModule,
    teacher: tuple[Tensor, Tensor],
    images: Cached,
    judge: Cached,
    *,
    epochs: int = 20,
    lr: float = 2e-3,
    batch: int = 256,
    seed: int = 0,
) -> tuple[HeadModule, Trained]:
    """Train a head (sparsity fixed) on cached features: Adam, cosine schedule to zero.

    Three times, with distillation from `teacher` (weight, bias), cross-entropy, and half of each, since labels help
    where the network has not learnt them by heart; what is best on `judge` stays, the start included.
    """
    began = time.perf_counter()
    before = best = top1(head, judge)
    kept, share_kept = head, None
    for share in DISTILLED_SHARES:
        candidate = copy.deepcopy(head)

        def loss(x: Tensor, labels: Tensor, candidate: HeadModule = candidate, share: float = share) -> Tensor:
            logits, total = candidate(x), x.new_zeros(())
            if share > 0:
                soft = F.linear(x, *teacher).log_softmax(1)
                total = share * F.kl_div(logits.log_softmax(1), soft, log_target=True, reduction="batchmean")
            return total + (1 - share) * F.cross_entropy(logits, labels) if share < 1 else total

        fit_adam(candidate, loss, images, epochs=epochs, lr=lr, batch=batch, seed=seed)
        reached = top1(candidate, judge)
        if reached > best:
            best, kept, share_kept = reached, candidate, share
    return kept, Trained(share_kept, before, best, time.perf_counter() - began)


def fit_adam(
    module: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor], images: Cached,
    *, epochs: int, lr: float, batch: int, seed: int,
) -> None:  # fmt: skip
    """Minimise `loss(features, labels)` by Adam on cached features; `lr` is for features of deviation one, cosine to zero."""
    optimizer = torch.optim.Adam(module.parameters(), lr / float(images.x.std().clamp_min(1e-12)))
    steps = epochs * -(-len(images.x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(epochs), desc="head", leave=False, disable=None):
        for i in torch.randperm(len(images.x), generator=generator).split(batch):
            batch_loss = loss(images.x[i], images.labels[i])
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            schedule.step()


def top1(head: torch.nn.Module, judge: Cached) -> float:
    """Measure the accuracy of a head on cached features."""
    return float((decisions(head, judge) == judge.labels).double().mean())


def decisions(head: torch.nn.Module, judge: Cached) -> Tensor:
    """The class with the largest logit, [images]."""
    with torch.inference_mode():
        return torch.cat([head(x).argmax(1) for x in judge.x.split(1000)])


def assemble(
    weight: Tensor, bias: Tensor, spaces: Subspaces, in_features: int, layout: str,
    *, full: tuple[Tensor, Tensor] | None = None, rescore: int = 0,
    coarse: tuple[Tensor, Tensor] | None = None, probe: int = 0,
) -> SubspaceLinear:  # fmt: skip
    """Put weights and subspaces together into the layer, float32.

    `full`: the dense layer whose logits rescoring gives, classes and features in their own order.

    `coarse`: the groups' scores, (weight [groups, features], bias), features in their own order.
    """
    columns = slice(None) if spaces.reorder is None else spaces.reorder
    index = spaces.index if spaces.reorder is None else spaces.reorder.argsort()[spaces.index]
    if full is not None:
        rows = spaces.rows(len(weight))
        full = full[0][rows][:, columns].float(), full[1][rows].float()
    return SubspaceLinear(
        weight.float(), index, bias.float(), in_features, layout,
        order=spaces.order, reorder=spaces.reorder, full=full, rescore=rescore,
        coarse=(coarse[0][:, columns].float(), coarse[1].float()) if coarse else None, probe=probe,
    )  # fmt: skip


def _runs(values: list[int]) -> list[tuple[int, int]]:
    """Count equal neighbours: (value, how many of it), in order."""
    return [(value, len(list(run))) for value, run in groupby(values)]
