"""Class-specific subspaces: each class keeps the few features it lives on (Badola et al., "Decomposing the Deep").

Selection: for each training image of a class, the k1 features largest in |x| at the input of the classifier vote; J_y,
the k2 features with most votes, are the class's subspace (Algorithm 1). Truncation: logit_y = sum over J_y of
W[y, j] x[j] + b_y, the dense weights as they are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import SlimrankError, near
from .layers import ChannelMap, captured

LAYOUTS = ("dense", "gather")


class SubspaceLinear(nn.Module):
    """A linear layer whose class y reads only the features `index[y]`: weight [classes, k], index [classes, k].

    Layouts are exact rewritings of one another: `gather` reads k features a class (k MACs a class), `dense` writes the
    weights back into a [classes, features] matrix with zeros (no fewer MACs).
    """

    weight: nn.Parameter
    bias: nn.Parameter
    index: Tensor

    def __init__(self, weight: Tensor, index: Tensor, bias: Tensor, in_features: int, layout: str = "gather"):
        super().__init__()
        if layout not in LAYOUTS:
            raise SlimrankError(f"no layout {layout!r}; {near(layout, LAYOUTS)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < in_features:
            raise SlimrankError(f"subspace indices must lie in 0..{in_features - 1}")
        self.in_features, self.layout = in_features, layout
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.register_buffer("index", index.detach().clone())

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def macs(self, _input_shape: tuple[int, ...]) -> int:
        return self.weight.numel() if self.layout == "gather" else self.out_features * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "dense":
            return F.linear(x, self.dense_weight(), self.bias)
        gathered = x.index_select(1, self.index.reshape(-1)).view(-1, *self.index.shape)
        return (gathered * self.weight).sum(-1) + self.bias

    def dense_weight(self) -> Tensor:
        """[classes, features], zero outside the subspaces."""
        zeros = self.weight.new_zeros(self.out_features, self.in_features)
        return zeros.scatter_add(1, self.index, self.weight)

    def slice_channels(self, keep_in: Tensor, keep_out: Tensor) -> None:
        """Cut features (their weights become zero, their index points at a kept one) and classes."""
        if not bool(keep_in.all()):
            new = (torch.cumsum(keep_in.long(), 0) - 1).clamp_min(0).to(self.index.device)
            alive = keep_in.to(self.index.device)[self.index]
            self.weight = nn.Parameter(self.weight.detach() * alive)
            self.index = new[self.index] * alive
            self.in_features = int(keep_in.sum())
        if not bool(keep_out.all()):
            rows = keep_out.to(self.index.device)
            self.weight, self.bias = nn.Parameter(self.weight.detach()[rows]), nn.Parameter(self.bias.detach()[rows])
            self.index = self.index[rows]

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.weight.shape[1]} of them a class -> {self.out_features}, {self.layout}"


@dataclass(frozen=True)
class Votes:
    """What Algorithm 1 counts: `histogram` [classes, features], and the summed |x| per class, both over `images`."""

    histogram: Tensor
    mass: Tensor
    images: Tensor  # [classes]
    k1: int

    def choose(self, k2: int) -> Tensor:
        """int64 [classes, k2], rising: the features with most votes; ties by summed mass, then by lower index.

        Bins without a vote follow by largest mean |x|.
        """
        features = self.histogram.shape[1]
        if not 1 <= k2 <= features:
            raise SlimrankError(f"--k2 is {k2}, the classifier reads {features} features; choose 1 to {features}")
        mean = self.mass / self.images[:, None].clamp_min(1)
        by_mass = torch.argsort(mean, dim=1, descending=True, stable=True)
        votes = self.histogram.gather(1, by_mass)
        order = by_mass.gather(1, torch.argsort(votes, dim=1, descending=True, stable=True))
        return order[:, :k2].sort(1).values


def vote(features: Iterable[tuple[Tensor, Tensor]], classes: int, k1: int) -> Votes:
    """Algorithm 1's histogram from batches of (features [images, m], labels [images]); memory O(classes * m)."""
    histogram = mass = None
    images = torch.zeros(classes, dtype=torch.long)
    for x, labels in features:
        size = x.abs().double().cpu()
        labels = labels.cpu()
        if not 1 <= k1 <= size.shape[1]:
            raise SlimrankError(f"--k1 is {k1}, the classifier reads {size.shape[1]} features; choose 1 to {size.shape[1]}")
        if histogram is None or mass is None:
            histogram = torch.zeros(classes, size.shape[1], dtype=torch.long)
            mass = torch.zeros(classes, size.shape[1], dtype=torch.float64)
        best = torch.argsort(size, dim=1, descending=True, stable=True)[:, :k1]
        histogram.index_put_((labels[:, None].expand_as(best), best), torch.ones_like(best), accumulate=True)
        mass.index_add_(0, labels, size)
        images += torch.bincount(labels, minlength=classes)
    if histogram is None or mass is None:
        raise SlimrankError("no training images to choose features from; check --data")
    return Votes(histogram, mass, images, k1)


def classifier(model: nn.Module, channels: ChannelMap) -> nn.Linear:
    """The last linear layer, the one whose outputs are the classes."""
    module = model.get_submodule(channels.classifier)
    if isinstance(module, SubspaceLinear):
        raise SlimrankError("the classifier is specialised already; specialise the checkpoint it came from")
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__
        raise SlimrankError(f"the classifier {channels.classifier} is a {kind}; only nn.Linear can be specialised so far")
    return module


def features(model: nn.Module, layer: str, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """What a layer reads, batch by batch: ([images, m], labels)."""
    model.eval()
    with torch.inference_mode(), captured(model, [layer]) as seen:
        for images, labels in tqdm(batches, desc="features", leave=False, disable=None):
            model(images)
            yield seen[layer], labels


def truncate(dense: nn.Linear, index: Tensor, layout: str = "gather") -> SubspaceLinear:
    """The paper's decomposed head: the dense weights at the chosen features, nothing refitted."""
    weight = dense.weight.detach()
    bias = dense.bias.detach() if dense.bias is not None else weight.new_zeros(len(weight))
    index = index.to(weight.device)
    return SubspaceLinear(weight.gather(1, index), index, bias, dense.in_features, layout)
