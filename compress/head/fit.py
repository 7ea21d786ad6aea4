"""The weights of the subspaces: the dense ones as they are, least squares of the dense logits, or a few seconds' training.

All of it works on what the classifier reads; no conv layer runs.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..channels.features import Cached, Moments
from ..network.subspace import SubspaceLinear, sizes
from .cluster import Subspaces
from .select import CHUNK

Head = TypeVar("Head", bound=torch.nn.Module)
DISTILLED_SHARES = (1.0, 0.5, 0.0)  # of the loss that is distillation; the rest is cross-entropy


def truncated(weight: Tensor, bias: Tensor, spaces: Subspaces) -> tuple[Tensor, Tensor]:
    """The paper's decomposed head: the dense weights at the chosen features. ([classes, k], [classes]), rows by group."""
    rows = spaces.rows(len(weight))
    index = spaces.index.repeat_interleave(torch.tensor(sizes(len(weight), len(spaces.index))), 0)
    return weight[rows].gather(1, index), bias[rows]


def refitted(weight: Tensor, bias: Tensor, moments: Moments, spaces: Subspaces) -> tuple[Tensor, Tensor]:
    """Least squares of the logits w x + b on the kept features and a constant: what minimises the mean squared error.

    Normal equations from the covariance C: C[J, J] w_J = C[J, :] w. A ridge of 1e-8 of the mean variance keeps them
    solvable, 1e-2 where there are no more images than features a class. Rows by group.
    """
    covariance, mean = moments.covariance, moments.mean
    k, m = spaces.index.shape[1], len(mean)
    ridge = (1e-8 if moments.n > k else 1e-2) * float(covariance.diagonal().mean()) + 1e-30
    rows = spaces.rows(len(weight))
    made: list[Tensor] = []
    begin = 0
    for size, count in _runs(sizes(len(weight), len(spaces.index))):
        done = len(made)
        for index in spaces.index[done : done + count].split(max(1, CHUNK // (k * k + size * m))):
            mine = rows[begin : begin + size * len(index)]
            begin += len(mine)
            normal = covariance[index[:, :, None], index[:, None, :]] + ridge * torch.eye(k, dtype=covariance.dtype)
            right = (weight[mine].to(covariance) @ covariance).view(len(index), size, m)
            right = right.gather(2, index[:, None, :].expand(-1, size, -1))
            made += list(torch.linalg.solve(normal, right.transpose(1, 2)).transpose(1, 2))
    fitted = torch.cat(made)
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
    head: Head,
    teacher: tuple[Tensor, Tensor],
    images: Cached,
    judge: Cached,
    *,
    epochs: int = 20,
    lr: float = 2e-3,
    batch: int = 256,
    seed: int = 0,
) -> tuple[Head, Trained]:
    """Train a head (sparsity fixed) on cached features: Adam, cosine schedule to zero.

    Three times, with distillation from `teacher` (weight, bias), cross-entropy, and half of each, since labels help
    where the network has not learnt them by heart; what is best on `judge` stays, the start included.
    """
    began = time.perf_counter()
    before = best = top1(head, judge)
    kept, share_kept = head, None
    for share in DISTILLED_SHARES:
        made = copy.deepcopy(head)

        def loss(x: Tensor, labels: Tensor, made: Head = made, share: float = share) -> Tensor:
            logits, total = made(x), x.new_zeros(())
            if share > 0:
                soft = F.linear(x, *teacher).log_softmax(1)
                total = share * F.kl_div(logits.log_softmax(1), soft, log_target=True, reduction="batchmean")
            return total + (1 - share) * F.cross_entropy(logits, labels) if share < 1 else total

        fit_adam(made, loss, images, epochs=epochs, lr=lr, batch=batch, seed=seed)
        found = top1(made, judge)
        if found > best:
            best, kept, share_kept = found, made, share
    return kept, Trained(share_kept, before, best, time.perf_counter() - began)


def fit_adam(
    made: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor], images: Cached,
    *, epochs: int, lr: float, batch: int, seed: int,
) -> None:  # fmt: skip
    """Adam on cached features, its learning rate for features of deviation one, cosine schedule to zero."""
    optimizer = torch.optim.Adam(made.parameters(), lr / float(images.x.std().clamp_min(1e-12)))
    steps = epochs * -(-len(images.x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(epochs), desc="head", leave=False, disable=None):
        for i in torch.randperm(len(images.x), generator=generator).split(batch):
            off = loss(images.x[i], images.labels[i])
            optimizer.zero_grad()
            off.backward()
            optimizer.step()
            schedule.step()


def top1(head: torch.nn.Module, judge: Cached) -> float:
    """Accuracy of a head on cached features."""
    return float((decisions(head, judge) == judge.labels).double().mean())


def decisions(head: torch.nn.Module, judge: Cached) -> Tensor:
    with torch.inference_mode():
        return torch.cat([head(x).argmax(1) for x in judge.x.split(1000)])


def assemble(
    weight: Tensor, bias: Tensor, spaces: Subspaces, in_features: int, layout: str,
    *, full: tuple[Tensor, Tensor] | None = None, rescore: int = 0,
    coarse: tuple[Tensor, Tensor] | None = None, probe: int = 0,
) -> SubspaceLinear:  # fmt: skip
    """The layer, float32. `full`: the dense layer whose logits rescoring gives, classes and features in their own order.

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
    """(size, how many groups of it), in order."""
    found: list[list[int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return [(a, b) for a, b in found]
