"""Where a network lies while something is done with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def on(device: str, model: nn.Module) -> Iterator[None]:
    """Within the context, the model lies on a device; afterwards, where it was."""
    before = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
