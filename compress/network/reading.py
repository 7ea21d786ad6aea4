"""How a checkpoint is read, as options. Free of torch: the parser reads it."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluate.imagespec import ImageSpec
from ...option import flat, nested, option

if TYPE_CHECKING:
    from .record import Checkpoint


def pair(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; a value that is JSON is what JSON makes of it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a foreign checkpoint does not say itself: its network, and how the network sees images."""

    model: str | None = option(
        None, "for foreign checkpoints: resnet20-cifar, resnet18, timm/NAME, hf/DIR, package.module:function", metavar="NAME"
    )
    model_arg: tuple[tuple[str, Any], ...] = option((), read=pair, metavar="K=V", repeat=True)
    images: ImageSpec = nested(ImageSpec())
    state_dict: str | None = option(
        None, "where the weights are, in a foreign file with several that fit, as state_dict_ema", metavar="NAME"
    )
    trust_pickle: bool = option(False, "unpickle a file that holds code (it will run)")

    @property
    def words(self) -> dict[str, Any]:
        """Keyword arguments of `checkpoint.load`."""
        return {
            "model": self.model, "model_arg": dict(self.model_arg) or None, "state_dict": self.state_dict,
            "trust_pickle": self.trust_pickle, **flat(self.images),
        }  # fmt: skip

    def load(self, path: Path) -> "Checkpoint":
        from .checkpoint import load

        return load(path, **self.words)
