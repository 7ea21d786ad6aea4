"""The layers that read a group's units, each able to multiply them by a mask or a switch."""

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..network.layers import is_plain
from ..network.resize import CONVS


class Site(nn.Module):
    """A layer whose inputs are multiplied by `scale` ([units], or [images, units]), each channel by the entry of its unit;
    None: as they are.

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
        self._given = threading.local()
        dense = isinstance(layer, nn.Linear) or (isinstance(layer, CONVS) and layer.groups == 1)
        self.dense = dense and is_plain(layer)
        self.axis = -1 if isinstance(layer, nn.Linear) else 1

    @property
    def scale(self) -> Tensor | None:
        """Of this thread: each runs other coalitions."""
        return getattr(self._given, "scale", None)

    @scale.setter
    def scale(self, value: Tensor | None) -> None:
        self._given.scale = value

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.operands(x)
        out: Tensor = self.layer(x) if weight is None else self.apply_weight(x, weight)
        return out

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Input and weight (None: its own) with which the layer reads the multiplied units."""
        if self.scale is None:
            return x, None
        scale = torch.where(self.unit >= 0, self.scale[..., self.unit.clamp_min(0)], 1.0)
        if self.dense and scale.dim() == 1:
            return x, self.layer.weight * scale.view(1, -1, *[1] * (self.layer.weight.dim() - 2))
        shape = [len(scale) if scale.dim() == 2 else 1, *[1] * (x.dim() - 1)]
        shape[self.axis] = scale.shape[-1]
        return x * scale.view(shape), None

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
