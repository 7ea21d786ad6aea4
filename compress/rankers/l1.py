"""L1 norm of a filter's weights (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1)."""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..channels.groups import ChannelMap
from .scores import FilterScores


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    *,
    classes: int = 0,
    seed: int = 0,
    layers: list[str] | None = None,
) -> FilterScores:
    """Score of a unit: sum of |w| over its filters, summed over the layers tied together. Data-free, exact."""
    start = time.perf_counter()
    total: Tensor = torch.zeros(sum(g.units for g in channels.groups), dtype=torch.float64)
    for name, units in channels.writes.items():
        weight = getattr(model.get_submodule(name), "weight", None)
        if isinstance(weight, Tensor):  # a shortcut without parameters writes too
            sums = weight.detach().abs().flatten(1).sum(1).double().cpu()
            total.index_add_(0, units, sums)
    groups = map(channels.group, channels.chosen(layers))
    scores = {group.name: total[group.offset : group.offset + group.units].tolist() for group in groups}
    return FilterScores(ranker="l1", scores=scores, seconds=time.perf_counter() - start)
