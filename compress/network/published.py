"""How published networks see images: the evaluation transforms that their accuracy was measured with. Nothing is downloaded."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import SlimrankError
from ...evaluate.data import Preprocessing


def from_torchvision(name: str, file: str = "") -> Preprocessing | None:
    """The transform of torchvision's weights for a network, by its name; None where there are none.

    A network may have several: those that torchvision downloads as `file`, else its default ones.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)
    if not len(weights):
        return None
    chosen = next((one for one in weights if one.url.rpartition("/")[2] == file), None) or weights.DEFAULT
    transform = chosen.transforms()
    return Preprocessing(
        transform.crop_size[0], tuple(transform.mean), tuple(transform.std), resize=transform.resize_size[0],
        interpolation=transform.interpolation.value,
    )  # fmt: skip


def from_timm(config: Mapping[str, Any]) -> Preprocessing:
    """The transform of a timm network's `pretrained_cfg` (a dict), as timm.data.create_transform makes it for evaluation.

    Raises SlimrankError for a crop mode that fills borders, which no convolutional network of timm's was published with.
    """
    _, height, width = config["input_size"]
    crop_pct, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise SlimrankError(f"timm's crop mode {mode!r} is not supported; say `resize` and `size` instead")
    squashed = (math.floor(height / crop_pct), math.floor(width / crop_pct)) if mode == "squash" else None
    return Preprocessing(
        (height, width), tuple(config["mean"]), tuple(config["std"]), resize=squashed,
        crop_pct=1.0 if squashed else crop_pct, interpolation=config.get("interpolation") or "bicubic",
    )  # fmt: skip


def in_channels(usual: Preprocessing, channels: int) -> Preprocessing:
    """The same for a network that reads another number of channels: mean and deviation are those usual for it."""
    if len(usual.mean) == channels:
        return usual
    blank = Preprocessing.default(channels, usual.size)
    return replace(usual, mean=blank.mean, std=blank.std)
