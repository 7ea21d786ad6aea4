"""The dense classifier that a head replaces, and the shapes of head that fit it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels import ChannelMap, channels_of
from ..channels.features import Batches, classifier, features
from ..network.checkpoint import Checkpoint
from ..network.layout_names import INT8
from ..network.subspace import check_probe
from ..training import gates
from .options import BY_GATES, HeadOptions, default_k
from .select import centred


@dataclass(frozen=True)
class Classifier:
    """A dense layer, weight [classes, features] and bias [classes] (CPU), and where it stands in its network."""

    checkpoint: Checkpoint
    channels: ChannelMap
    layer: str
    dense: nn.Linear
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, checkpoint: Checkpoint, layer: str | None = None) -> "Classifier":
        """Find the layer that gives the classes.

        Raises SlimrankError where it is not linear, not called `layer`, or what it gives is not what the network gives.
        """
        channels = channels_of(checkpoint)
        name, dense = classifier(checkpoint.model, channels, checkpoint.example(), layer)
        weight = dense.weight.detach().cpu()
        bias = torch.zeros(len(weight)) if dense.bias is None else dense.bias.detach().cpu()
        return cls(checkpoint, channels, name, dense, weight, bias)

    def seen(self, batches: Batches, labelled: bool) -> Batches:
        """What the layer reads of images, batch by batch, and their classes: its own decisions where there are no labels."""
        for x, labels in features(self.checkpoint.model, self.layer, batches):
            yield x, labels if labelled else self.decided(x)

    def decided(self, x: Tensor) -> Tensor:
        """Classes that the layer decides on, [images], of what it reads."""
        return F.linear(x, self.dense.weight.detach(), self.dense.bias).argmax(1)

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def features(self) -> int:
        return self.weight.shape[1]

    def target(self, fit: str) -> tuple[Tensor, Tensor]:
        """The logits to approximate, as (weight, bias): the paper truncates the dense layer's own; what is fitted leaves out
        what all classes share, for it moves no softmax."""
        return (self.weight, self.bias) if fit == "truncate" else centred(self.weight, self.bias)


def check_fitting(classifier: Classifier, options: HeadOptions) -> None:
    """Raise SlimrankError for options that this classifier is too small for, or has no gates for."""
    features, classes = classifier.features, classifier.classes
    for name, k in (("k2", options.k2), ("k1", options.k1)):
        if isinstance(k, int) and not 1 <= k <= features:
            raise SlimrankError(f"`{name}` is {k}, the classifier reads {features} features; choose 1 to {features}")
    if isinstance(options.rescore, int) and not 0 <= options.rescore <= classes:
        raise SlimrankError(f"`rescore` is {options.rescore}, must lie in 0..{classes}: there are {classes} classes")
    if options.layout == "tiled":
        tile_for(features, options.tile, options.k2 if isinstance(options.k2, int) else None)
    if options.groups is not None and options.groups > classes:
        raise SlimrankError(f"`groups` is {options.groups}, the classifier has {classes} classes; choose fewer")
    if options.probe:
        probe, rescore = (value if isinstance(value, int) else 1 for value in (options.probe, options.rescore))
        check_probe(probe, class_groups(classes, options), rescore if options.probe != "auto" else 0, classes)
    if options.chosen_by == BY_GATES and options.layout != "tiled":
        if classifier.checkpoint.gates is None:
            raise SlimrankError("`select` gates: this checkpoint has no gates; train them with `slimrank train --csg`")
        gates.fitting(classifier.checkpoint.gates, classifier.weight)


def tile_for(features: int, tile: int | None, k2: int | None) -> int:
    """The width of a tile: `tile`, else the widest up to 16 that leaves a group of classes at least four tiles."""
    kept = k2 or default_k(features)
    width = tile or next(t for t in (16, 8, 4, 2, 1) if (features % t == 0 and kept >= 4 * t) or t == 1)
    if tile is None and k2 is not None:
        while k2 % width:
            width //= 2
    if features % width or (k2 is not None and k2 % width):
        both = f"`k2` {k2} and the" if k2 else "the"
        raise SlimrankError(f"`tile` {width} does not divide {both} classifier's {features} features; choose another")
    return width


def kept_features(features: int, layout: str, options: HeadOptions) -> int:
    """Features that a class keeps: `k2`, else an eighth of them in whole tiles; int8 keeps all."""
    if layout == INT8:
        return features
    if isinstance(options.k2, int):
        return options.k2
    tile = tile_for(features, options.tile, None) if layout == "tiled" else 1
    return max(tile, default_k(features) // tile * tile)


def class_groups(classes: int, options: HeadOptions) -> int:
    """Groups of classes: `groups`, else of 25 classes, or as many as a group has classes where the best of them are probed."""
    if options.groups:
        return options.groups
    return two_level_groups(classes) if options.probe else min(classes, max(2, classes // 25))


def two_level_groups(classes: int) -> int:
    """As many groups as a group has classes."""
    return min(classes, max(2, round(math.sqrt(classes))))
