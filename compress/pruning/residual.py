"""Residual sums: what the other summand has lost by now is asked of the last layer in front of the sum."""

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ..layerwise.prefix import Program

ADDS = (operator.add, torch.add)
LEAST_SCALE = 1e-4  # of a BatchNorm: a channel that it all but mutes cannot repair anything


@dataclass(frozen=True)
class Residual:
    """The other summand behind a layer, `dense` and `cut`: its nodes in both networks; `scale` [filters]: from the sum back
    to the layer's own output, through the BatchNorm between them."""

    dense: fx.Node
    cut: fx.Node
    scale: Tensor | None

    @classmethod
    def at(cls, cut: Program, dense: Program, node: fx.Node, norm: BatchNorm | None) -> "Residual | None":
        """Find the sum that follows a layer, or its BatchNorm; None where there is none, or where its other summand waits for
        layers behind this one: it is then asked of the last of them."""
        end = node if norm is None else next(iter(node.users))
        sums = [user for user in end.users if user.target in ADDS or (user.op == "call_method" and user.target == "add")]
        if len(end.users) != 1 or not sums or sums[0].kwargs:
            return None
        others = [source for source in sums[0].args[:2] if isinstance(source, fx.Node) and source is not end]
        if len(others) != 1 or cut.nodes.index(others[0]) > cut.nodes.index(node):
            return None
        scale = None if norm is None else _undo(norm)
        return cls(dense.nodes[cut.nodes.index(others[0])], others[0], scale)

    def asked_back(self, lost: Tensor) -> Tensor:
        """What the sum lacks, rows [groups, rows, filters of a group], as the layer would have to write it."""
        return lost if self.scale is None else lost * self.scale.view(len(lost), 1, -1)


def _undo(norm: BatchNorm) -> Tensor:
    """From a BatchNorm's output back to its input, a factor a channel; 0 where it all but mutes the channel."""
    assert norm.running_var is not None
    spread = (norm.running_var + norm.eps).sqrt()
    if norm.weight is None:
        return spread
    return torch.where(norm.weight.abs() < LEAST_SCALE, 0.0, spread / norm.weight)
