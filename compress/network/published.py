"""How published networks see images: the evaluation transforms that their accuracy was measured with. Nothing is downloaded."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import SlimrankError
from ...evaluate.data import Preprocessing
from ...evaluate.imagespec import Side

PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by the numbers that Pillow gives them


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


def from_transformers(said: Mapping[str, Any], config: Mapping[str, Any]) -> Preprocessing:
    """The transform of a preprocessor_config.json; what it leaves out is as config.json and ImageNet have it.

    A `size` of one number or `shortest_edge` is that of the shorter side, one of `height` and `width` that of the image;
    below 384 pixels ConvNeXt's is that of the crop, and `crop_pct` how much of the scaled image that is.
    """
    size = _edges(said.get("size") or config.get("image_size") or 224)
    crop = _edges(said["crop_size"]) if said.get("do_center_crop") and said.get("crop_size") else size
    default = Preprocessing.default(int(config.get("num_channels") or 3), crop)
    mean, std = said.get("image_mean") or default.mean, said.get("image_std") or default.std
    if said.get("do_normalize") is False:
        mean, std = (0.0,) * len(default.mean), (1.0,) * len(default.std)
    elif said.get("include_top"):  # EfficientNet's divides by the deviation twice
        std = [value * value for value in std]
    scale = 255 * said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 255
    shift = 1 if said.get("rescale_offset") else 0
    mean, std = [(value + shift) / scale for value in mean], [value / scale for value in std]
    interpolation = PILLOW[said.get("resample", 2)]
    if said.get("crop_pct") and isinstance(size, int) and size < 384:
        return Preprocessing(size, tuple(mean), tuple(std), crop_pct=said["crop_pct"], interpolation=interpolation)
    squashed = (size, size) if isinstance(size, int) and said.get("crop_pct") else size
    return Preprocessing(crop, tuple(mean), tuple(std), resize=squashed, interpolation=interpolation)


def _edges(size: Any) -> Side:
    """Sides in pixels out of a number, or an object of `shortest_edge` or `height` and `width`."""
    if not isinstance(size, Mapping):
        return int(size)
    if "shortest_edge" in size:
        return int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])
