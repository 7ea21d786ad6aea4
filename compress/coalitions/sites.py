"""The layers that read a group's units, each able to multiply them by a mask or a switch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..network.layers import is_plain
from ..network.resize import CONVS


class Site(nn.Module):
    """A layer whose inputs are multiplied by `scale` ([units]), each channel by the entry of its unit; None: as they are.

    `unit[channel]`: the unit of an input channel, -1 for none of the group. `dense`: the layer is torch's linear, or its conv
    without groups; then its weights are scaled instead of the activations, which costs nothing and is the same. `axis`: of
    channels.
    """

    def __init__(self, layer: nn.Module, unit: Tensor):
        super().__init__()
        self.layer: Any = layer
        for name, child in layer.named_children():  # which the graph may call before the layer's own operator
            self.add_module(name, child)
        self.unit: Tensor
        self.register_buffer("unit", unit, persistent=False)
        self.scale: Tensor | None = None
        dense = isinstance(layer, nn.Linear) or (isinstance(layer, CONVS) and layer.groups == 1)
        self.dense = dense and is_plain(layer)
        self.axis = -1 if isinstance(layer, nn.Linear) else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            unscaled: Tensor = self.layer(x)
            return unscaled
        scale = torch.where(self.unit >= 0, self.scale[self.unit.clamp_min(0)], 1.0)
        if not self.dense:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            scaled: Tensor = self.layer(x * scale.view(shape))
            return scaled
        weight = self.layer.weight * scale.view(1, -1, *[1] * (self.layer.weight.dim() - 2))
        return self.apply_weight(x, weight)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
        """The layer with another weight; without its bias if asked."""
        layer = self.layer
        added = layer.bias if bias else None
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, added)
        convolved: Tensor = layer._conv_forward(x, weight, added)
        return convolved


def places(channels: ChannelMap, layer: str) -> tuple[int, dict[str, Tensor]]:
    """Number of units of a layer's group, and for every layer that reads them the unit of each input channel (-1: none).

    For the classifier's own name: the features that it reads, at the classifier alone. Raises SlimrankError for an unknown
    layer and for a group that no layer reads.
    """
    if layer == channels.classifier:
        features = len(channels.reads[layer])
        return features, {layer: torch.arange(features)}
    group = channels.group(layer)
    first, last = group.offset, group.offset + group.units
    readers = {}
    for reader in channels.readers(group):
        units = channels.reads[reader]
        readers[reader] = torch.where((units >= first) & (units < last), units - first, -1)
    if not readers:
        raise SlimrankError(f"layer {group.name} cannot be masked: {group.why or 'no layer reads it'}")
    return group.units, readers
