"""Class-specific gates (CSG; Liang et al., "Training interpretable CNNs by differentiating class-specific filters", 2020).

A matrix G in [0, 1]^(features x classes), 0.5 at first. In gated epochs the classifier reads the features times G[:, y] of the
image's true class; the loss gains lambda * relu(|G|_1 - 0.2 m c); after each step G is clamped to [0, 1] and each feature's row
divided by its largest entry, a row of zeros becoming ones. From scratch every third epoch is gated, from the tenth on. From a
checkpoint every third, from the first.

The gates are stepped by plain gradient at RATE times the network's learning rate: the papers give no rate, and the
gradient of a gate, averaged over a batch in which its class is rare, is that much smaller than a weight's.

Gates interpret; they do not predict: on the gated path the true label is known (`top1_gated`), and gates that differ from class
to class give it away. `top1_own` is what can be had without it: each class's logit through that class's own gates.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.features import features
from ..channels.groups import ChannelMap, stays
from .parallel import averaged_over_processes
from .recipe import Csg

RATE = 100.0
LAMBDA, DENSITY = 1e-3, 0.2
BINS = 10


class Gates:
    """The gates of one classifier in training (a regularisers.Regulariser). `values`: [features, classes].

    `weight`: the classifier's, [classes, features]. `given`: gates to go on from.
    """

    def __init__(self, model: nn.Module, layer: str, weight: Tensor, csg: Csg, given: Tensor | None = None):
        classes, m = weight.shape
        self.layer, self.csg = model.get_submodule(layer), csg
        values = torch.full((m, classes), 0.5) if given is None else fitting(given, weight).clone()
        self.values = values.to(weight.device).requires_grad_(True)

    def active(self, epoch: int) -> bool:
        return self.csg.gated(epoch)

    @contextmanager
    def context(self, labels: Tensor) -> Iterator[Mapping[str, Tensor]]:
        """Within the context, the classifier reads what passes its image's gates."""
        hook = self.layer.register_forward_pre_hook(lambda _m, inputs: (inputs[0] * self.values[:, labels].T.to(inputs[0]),))
        try:
            yield {}
        finally:
            hook.remove()

    def penalty(self, seen: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """lambda * relu(|G|_1 - 0.2 m c); gates are not negative, so that |G|_1 is their sum."""
        return LAMBDA * torch.relu(self.values.sum() - DENSITY * self.values.numel())

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Step the gates by their own gradient, then project them."""
        if self.values.grad is not None:
            averaged_over_processes([self.values.grad])
            self.values -= RATE * lr * self.values.grad
            self.values.grad = None
        self.values.copy_(projected(self.values))

    def state(self) -> dict[str, Tensor]:
        return {"gates": self.values.detach()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        self.values.copy_(state["gates"])


def projected(gates: Tensor) -> Tensor:
    """Clamp gates to [0, 1] and divide each row by its largest entry; rows of zeros become ones."""
    gates = gates.clamp(0, 1)
    top = gates.amax(1, keepdim=True)
    return torch.where(top > 0, gates / top.clamp_min(1e-30), 1.0)


@dataclass(frozen=True)
class Gated:
    """Accuracy and information of a network with gates on some images.

    `density`: |G|_1 / (m c). `information[k]`: mutual information, in nats, between feature k (in ten bins of equal counts) and
    the class of the image; `largest_information[k]`: the most that it has about being of any one class or not.

    `top1`: accuracy on the plain path. `top1_gated`: on the gated path, which is given the true label. `top1_own`: each class's
    logit read through its own gates, no label given.
    """

    density: float
    top1: float
    top1_gated: float
    top1_own: float
    information: list[float]
    largest_information: list[float]
    images: int

    def to_dict(self) -> dict[str, Any]:
        best = torch.tensor(self.largest_information)
        return {**vars(self), "mean_largest_information": float(best.mean())}

    def __str__(self) -> str:
        return (
            f"gates: density {self.density:.3f}; top-1 {self.top1:.4f} on the plain path, {self.top1_gated:.4f} on the gated "
            f"one (given the true class), {self.top1_own:.4f} with each class's logit through its own gates "
            f"({self.images:,} images)"
        )


def measure_gates(model: nn.Module, layer: str, gates: Tensor, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Gated:
    """Measure accuracy on all paths and mutual information in one pass over images. `gates`: [features, classes]."""
    linear = model.get_submodule(layer)
    assert isinstance(linear, nn.Linear)
    hits = gated_hits = own_hits = 0
    xs, ys = [], []
    for x, labels in features(model, layer, batches):
        with torch.inference_mode():
            hits += int((linear(x).argmax(1) == labels).sum())
            own_hits += int((F.linear(x, linear.weight * gates.T.to(x), linear.bias).argmax(1) == labels).sum())
            gated_hits += int((linear(x * gates[:, labels.to(gates.device)].T.to(x)).argmax(1) == labels).sum())
        xs.append(x.float().cpu())
        ys.append(labels.cpu())
    if not xs:
        raise SlimrankError("no images to measure gates on; check `data`")
    x, labels = torch.cat(xs), torch.cat(ys)
    with_class, with_each = information(x, labels, classes)
    n = len(labels)
    return Gated(
        density=float(gates.mean()), top1=hits / n, top1_gated=gated_hits / n, top1_own=own_hits / n,
        information=with_class.tolist(), largest_information=with_each.amax(1).tolist(), images=n,
    )  # fmt: skip


def information(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mutual information, in nats, of each feature (binned by rank) with the class [features], and with being of each one
    class or not [features, classes]. x: [images, features]."""
    n, m = x.shape
    edges = torch.quantile(
        x.double()[torch.linspace(0, n - 1, min(n, 20_000)).long()], torch.linspace(0, 1, BINS + 1)[1:-1].double(), 0
    )
    bins = torch.searchsorted(edges.T.contiguous(), x.double().T.contiguous(), right=True)  # [features, images]
    whole, each = torch.zeros(m, dtype=torch.float64), torch.zeros(m, classes, dtype=torch.float64)
    for k in range(m):
        joint = torch.bincount(bins[k] * classes + labels, minlength=BINS * classes).view(BINS, classes).double() / n
        p, q = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
        whole[k] = _summand(joint, p * q).sum()
        each[k] = (_summand(joint, p * q) + _summand(p - joint, p * (1 - q))).sum(0)
    return whole, each


def _summand(joint: Tensor, apart: Tensor) -> Tensor:
    return torch.where(joint > 1e-15, joint * (joint.clamp_min(1e-300) / apart.clamp_min(1e-300)).log(), 0.0)


def fitting(gates: Tensor, weight: Tensor) -> Tensor:
    """Return the gates if their shape is that of this classifier, weight [classes, features]; raise SlimrankError if not."""
    classes, m = weight.shape
    if tuple(gates.shape) != (m, classes):
        raise SlimrankError(
            f"the gates are of {gates.shape[0]} features and {gates.shape[1]} classes, the classifier has {m} and {classes}; "
            "train them again on this network (train --from CKPT --csg)"
        )
    return gates


def cut_along(gates: Tensor | None, channels: ChannelMap, gone: Tensor) -> Tensor | None:
    """The gates of the features that stay when the units in `gone` are cut."""
    if gates is None:
        return None
    keep = stays(channels.reads[channels.classifier], gone)
    return gates[keep] if len(keep) == len(gates) else None


def choose(gates: Tensor, weight: Tensor, k2: int) -> Tensor:
    """int64 [classes, k2], rising: each class's features with the widest gates; equal ones by |W|, then by lower index.

    gates: [features, classes]; weight: the dense classifier's, [classes, features].
    """
    gates = fitting(gates, weight)
    by_weight = torch.argsort(weight.abs(), dim=1, descending=True, stable=True)
    order = torch.argsort(gates.T.gather(1, by_weight), dim=1, descending=True, stable=True)
    return by_weight.gather(1, order)[:, :k2].sort(1).values
