"""L1 norm of a filter's weights (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""

import time

import torch
from torch import Tensor, nn

from ..channels.groups import ChannelMap
from .scores import FilterScores


def rank(
    model: nn.Module, channels: ChannelMap, batches=None, *, classes: int = 0, seed: int = 0, layers: list[str] | None = None
) -> FilterScores:
    """Score of a unit: sum of |w| over its filters, summed over the layers tied together. Data-free, exact."""
    start = time.perf_counter()
    total: Tensor = torch.zeros(sum(g.units for g in channels.groups), dtype=torch.float64)
    for name, units in channels.writes.items():
        weight = getattr(model.get_submodule(name), "weight", None)
        if isinstance(weight, Tensor):  # a shortcut without parameters writes too
            sums = weight.detach().abs().flatten(1).sum(1).double().cpu()
            total.index_add_(0, units, sums)
    scores = {g.name: total[g.offset : g.offset + g.units].tolist() for g in map(channels.group, channels.chosen(layers))}
    return FilterScores("l1", scores, seconds=time.perf_counter() - start)
