"""Uniformly random scores: the ranker that every other one has to beat."""

import torch
from torch import nn

from ..channels.groups import ChannelMap
from .scores import FilterScores


def rank(
    model: nn.Module, channels: ChannelMap, batches=None, *, classes: int = 0, seed: int = 0, layers: list[str] | None = None
) -> FilterScores:
    """Score of a unit: a number in [0, 1), drawn with `seed`."""
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.units, generator=generator).tolist() for g in map(channels.group, channels.chosen(layers))}
    return FilterScores("random", scores, seed=seed)
