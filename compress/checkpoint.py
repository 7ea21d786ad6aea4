"""Where 0.7 had checkpoints: `load` with the names that its parameters had then. New code takes slimrank.load."""

from pathlib import Path
from typing import Any

from .network import checkpoint
from .network.checkpoint import Checkpoint, save

__all__ = ["Checkpoint", "load", "save"]


def load(path: str | Path, name: str | None = None, arguments: dict[str, Any] | None = None, **words: Any) -> Checkpoint:
    """Read a checkpoint as `slimrank.load` does, `name` being its `model` and `arguments` its `model_arg`."""
    return checkpoint.load(path, model=name, model_arg=arguments, **words)
