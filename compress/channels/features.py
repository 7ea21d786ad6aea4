"""The features that the classifier reads, and statistics of them: moments, votes, coverage.

One pass over the training images is enough; memory is O(features^2 + classes * features), unless the features
themselves are kept.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import SlimrankError
from ..network.subspace import SubspaceLinear
from .groups import ChannelMap
from .masking import captured

Batches = Iterable[tuple[Tensor, Tensor]]  # features [images, m], labels [images]
Keeper = Callable[[Tensor, Tensor], None]


def classifier(
    model: nn.Module, channels: ChannelMap, example: Tensor, layer: str | None = None
) -> tuple[str, nn.Linear]:  # fmt: skip
    """Find the linear layer whose outputs are the classes, and its name.

    Raises SlimrankError where `layer`, the name that the caller expects, is another, where the classifier is not linear,
    and where what it gives on `example` images is not what the network gives.
    """
    name = channels.classifier
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if layer is not None and layer != name:
        raise SlimrankError(
            f"`layer` {layer} does not give the classes; {name} does (linear layers: {', '.join(linear) or 'none'})"
        )
    module = model.get_submodule(name)
    if isinstance(module, SubspaceLinear):
        raise SlimrankError("the classifier is specialised already; take the checkpoint it came from")
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__
        raise SlimrankError(f"the classifier {name} is a {kind}; only a linear layer is told apart by class so far")
    _check_last(model, name, module, example)
    return name, module


def _check_last(model: nn.Module, name: str, layer: nn.Linear, example: Tensor) -> None:
    """Raise SlimrankError where the network's logits are not the layer's, as with a second head or BatchNorm behind it."""
    training = model.training
    with torch.inference_mode(), captured(model, [name]) as inputs:
        logits = model.eval()(example)
        given = layer(inputs[name])
    model.train(training)
    if given.shape != logits.shape or bool((given - logits).abs().max() > 1e-4 * logits.abs().max()):
        raise SlimrankError(
            f"the network's logits are not what its last linear layer {name} gives: something is computed behind it, or other "
            "layers join in; fold that into one linear layer, or let the network end with this one"
        )


def features(model: nn.Module, layer: str, batches: Batches) -> Batches:
    """Run a model and yield what a layer reads, batch by batch: features [images, m], labels."""
    model.eval()
    with torch.inference_mode(), captured(model, [layer]) as inputs:
        for images, labels in tqdm(batches, desc="features", leave=False, disable=None):
            model(images)
            yield inputs[layer], labels


@dataclass
class Moments:
    """Mean [m] and covariance [m, m] (divided by n) of the features, float64, summed around the first batch's mean."""

    n: int = 0
    _origin: Tensor = field(default_factory=lambda: torch.empty(0))
    _first: Tensor = field(default_factory=lambda: torch.empty(0))
    _second: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, x: Tensor, _labels: Tensor | None = None) -> None:
        x = x.double().cpu()
        if self.n == 0:
            self._origin = x.mean(0)
            self._first, self._second = torch.zeros_like(self._origin), x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._origin
        self.n += len(x)
        self._first += x.sum(0)
        self._second += x.T @ x

    @property
    def mean(self) -> Tensor:
        return self._origin + self._first / self.n

    @property
    def covariance(self) -> Tensor:
        offset = self._first / self.n
        return self._second / self.n - offset[:, None] * offset


class Votes:
    """Votes of Algorithm 1: each image votes, in the histogram of its class, for the k1 features largest in |x|.

    `histogram` [classes, features] counts, `mass` sums |x| per class, `images` counts a class's images.
    """

    def __init__(self, classes: int, k1: int):
        self.classes, self.k1 = classes, k1
        self.histogram = self.mass = torch.empty(0)
        self.images = torch.zeros(classes, dtype=torch.long)

    def add(self, x: Tensor, labels: Tensor) -> None:
        size, labels = x.abs().double().cpu(), labels.cpu()
        if not 1 <= self.k1 <= size.shape[1]:
            raise SlimrankError(
                f"`k1` is {self.k1}, the classifier reads {size.shape[1]} features; choose 1 to {size.shape[1]}"
            )
        if not self.histogram.numel():
            self.histogram = torch.zeros(self.classes, size.shape[1], dtype=torch.long)
            self.mass = torch.zeros(self.classes, size.shape[1], dtype=torch.float64)
        best = torch.argsort(size, dim=1, descending=True, stable=True)[:, : self.k1]
        self.histogram.index_put_((labels[:, None].expand_as(best), best), torch.ones_like(best), accumulate=True)
        self.mass.index_add_(0, labels, size)
        self.images += torch.bincount(labels, minlength=self.classes)

    def choose(self, k2: int) -> Tensor:
        """Choose the features with most votes, int64 [classes, k2], rising; ties go by summed mass, then by lower index.

        Bins without a vote follow by largest mean |x|. A class without images has no votes and takes what all classes
        vote for together.
        """
        if not self.histogram.numel():
            raise SlimrankError("no training images to choose features from; check `data`")
        features = self.histogram.shape[1]
        if not 1 <= k2 <= features:
            raise SlimrankError(f"`k2` is {k2}, the classifier reads {features} features; choose 1 to {features}")
        empty = (self.images == 0)[:, None]
        counts = torch.where(empty, self.histogram.sum(0), self.histogram)
        mass = torch.where(empty, self.mass.sum(0), self.mass)
        by_mass = torch.argsort(mass, dim=1, descending=True, stable=True)
        votes = counts.gather(1, by_mass)
        order = by_mass.gather(1, torch.argsort(votes, dim=1, descending=True, stable=True))
        return order[:, :k2].sort(1).values


def vote(batches: Batches, classes: int, k1: int) -> Votes:
    """Count the votes of Algorithm 1 in one pass."""
    votes = Votes(classes, k1)
    survey(batches, votes.add)
    return votes


class Coverage:
    """Share of an image's l1 norm that its k largest features carry, averaged over images, for every k."""

    def __init__(self) -> None:
        self.n, self.share = 0, torch.zeros(1)

    def add(self, x: Tensor, _labels: Tensor | None = None) -> None:
        size = x.abs().double().cpu().sort(1, descending=True).values
        shares = size.cumsum(1) / size.sum(1, keepdim=True).clamp_min(1e-300)
        self.share = shares.sum(0) if self.n == 0 else self.share + shares.sum(0)
        self.n += len(x)

    def least(self, share: float) -> int:
        """Find the smallest k whose features carry `share` of the l1 norm on average."""
        return int((self.share / self.n < share - 1e-12).sum()) + 1


@dataclass(frozen=True)
class Cached:
    """All features [images, m] and labels."""

    x: Tensor
    labels: Tensor


def survey(batches: Batches, *keepers: Keeper) -> int:
    """Show every batch to every keeper, in one pass. Returns the number of images; none raise SlimrankError."""
    n = 0
    for x, labels in batches:
        if x.dim() != 2:
            raise SlimrankError(f"the classifier reads {list(x.shape)} a batch; only one vector an image can be specialised")
        for keep in keepers:
            keep(x, labels)
        n += len(x)
    if not n:
        raise SlimrankError("no training images to choose features from; check `data`")
    return n


def cached(batches: Batches) -> Cached:
    """Keep all features and labels in memory."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []

    def keep(x: Tensor, labels: Tensor) -> None:
        xs.append(x.float().cpu())
        ys.append(labels.cpu())

    survey(batches, keep)
    return Cached(torch.cat(xs), torch.cat(ys))
