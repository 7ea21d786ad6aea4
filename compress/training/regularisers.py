"""What may join the loss and the steps of a training: one protocol, and which of its kinds a recipe asks for."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..channels.features import classifier
from ..channels.tracing import channel_map
from .block_norm import BlockNormRegulariser
from .gates import Gates
from .recipe import Recipe


class Regulariser(Protocol):
    """A term of the loss with what it needs around the forward pass and after a step."""

    def active(self, epoch: int) -> bool:
        """Whether it takes part in an epoch, counted from 0; nothing below is called in the others."""

    def context(self, labels: Tensor) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Wrap the forward pass on images of these labels; yields a mapping that holds what `penalty` reads afterwards."""

    def penalty(self, seen: Mapping[str, Tensor], generator: torch.Generator) -> Tensor | float:
        """What is added to the loss of that forward pass."""

    def after_step(self, lr: float) -> None:
        """Follow the optimizer's step, taken at learning rate `lr`."""

    def state(self) -> dict[str, Tensor]:
        """What it learns beside the network's weights, by names that are its own."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


def regularisers(model: nn.Module, recipe: Recipe, example: Tensor, gates: Tensor | None) -> list[Regulariser]:
    """Those that `recipe` asks for, on the network to be trained. `gates`: [features, classes] to go on from, or None."""
    if recipe.block_norm is None and recipe.csg is None:
        return []
    channels = channel_map(model, example)
    chosen: list[Regulariser] = []
    if recipe.csg is not None:
        layer, linear = classifier(model, channels, example)
        chosen.append(Gates(model, layer, linear.weight, recipe.csg, gates))
    if recipe.block_norm is not None:
        chosen.append(BlockNormRegulariser(model, channels, recipe.block_norm))
    return chosen
