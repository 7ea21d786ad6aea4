"""Uniformly random scores: the ranker that every other one has to beat."""

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
    """Score of a unit: a number in [0, 1), drawn with `seed`. Needs no images."""
    generator = torch.Generator().manual_seed(seed)
    groups = map(channels.group, channels.chosen(layers))
    scores = {group.name: torch.rand(group.units, generator=generator).tolist() for group in groups}
    return FilterScores(ranker="random", scores=scores, seed=seed)
