"""From a picture to the numbers that a network reads."""

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import SlimrankError, near
from ..imagespec import INTERPOLATIONS, Side
from .decode import MODES, eight_bits, turn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of red, green, blue
STRIP = 2**24  # pixels of a scaled picture of which little is used
MAX_SIDE = 4096  # pixels a side; what is larger is a slip of the keyboard
MAX_CHANNELS = 10_000  # that a network reads; pictures have four, hyperspectral ones hundreds


@dataclass(frozen=True)
class Preprocessing:
    """Scale, crop the middle, divide by 255, subtract `mean`, divide by `std`: torchvision's and timm's evaluation transform.

    `size`: of the crop, which is the network's input: pixels a side, or (height, width). `resize`: the shorter side before the
    crop, or (height, width) whatever the picture's shape; None: what just covers `size` / `crop_pct`. `interpolation`:
    Pillow's, which all shrink without aliasing but nearest. One `mean` and `std` a channel: 1 reads grey, 3 RGB, 4 RGBA.
    Raises SlimrankError for values that no image survives.
    """

    size: Side
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Side | None = None
    crop_pct: float = 1.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        height, width = sides(self.size, "size")
        object.__setattr__(self, "size", height if height == width else (height, width))
        if len(self.mean) != len(self.std) or not self.mean:
            raise SlimrankError(f"`mean` has {len(self.mean)} values, `std` {len(self.std)}; give one of each a channel")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SlimrankError(f"`mean` {self.mean} and `std` {self.std} must be finite numbers")
        if min(self.std) <= 0:
            raise SlimrankError(f"`std` {self.std} must be positive")
        if self.interpolation not in INTERPOLATIONS:
            raise SlimrankError(f"no interpolation {self.interpolation!r}; {near(self.interpolation, INTERPOLATIONS)}")
        if not 0.01 <= self.crop_pct <= 1:
            raise SlimrankError(f"`crop_pct` is {self.crop_pct}, must lie in 0.01..1; 0.875 is usual")
        if self.resize is not None:
            tall, wide = sides(self.resize, "resize")
            least = (min(height, width),) * 2 if isinstance(self.resize, int) else (height, width)
            if tall < least[0] or wide < least[1]:
                raise SlimrankError(
                    f"`size` {shown(self.size)} is cut from images of `resize` {shown(self.resize)}, which is smaller; "
                    "make `resize` at least as large"
                )

    @classmethod
    def default(cls, channels: int, size: Side) -> "Preprocessing":
        """ImageNet's mean and standard deviation for three channels, 0.5 and 0.5 for others."""
        if channels > MAX_CHANNELS:
            raise SlimrankError(f"the network would read {channels:,} channels; {MAX_CHANNELS:,} are the limit")
        mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        return cls(size, mean, std)

    @classmethod
    def from_dict(cls, value: Any) -> "Preprocessing":
        """Read the JSON object that `dataclasses.asdict` made; what files before 0.9 lack is what they meant.

        Raises ValueError for anything of another type, and SlimrankError as the constructor does.
        """
        return msgspec.convert(value, cls)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a preprocessed image."""
        return len(self.mean), *sides(self.size, "size")

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """Turn upright, scale and crop a picture; uint8 [channels, height, width].

        Raises SlimrankError for a picture whose shape does not allow it.
        """
        _, height, width = self.shape
        picture = self.upright(picture)
        scaled = self.scaled(*picture.size)
        if scaled[0] < width or scaled[1] < height:
            raise SlimrankError(
                f"a picture of {picture.width}x{picture.height} pixels is scaled to {scaled[0]}x{scaled[1]}, less than the "
                f"{width}x{height} that are cut from it; leave out `resize`, or give both sides of it"
            )
        resampling = Image.Resampling[self.interpolation.upper()]
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        if scaled[0] * scaled[1] > max(STRIP, 64 * width * height):  # a strip: nothing is scaled but what is cut from it
            x, y = picture.width / scaled[0], picture.height / scaled[1]
            box = (left * x, top * y, min((left + width) * x, picture.width), min((top + height) * y, picture.height))
            return planes(picture.resize((width, height), resampling, box))
        if picture.size != scaled:
            picture = picture.resize(scaled, resampling)
        if picture.size != (width, height):
            picture = picture.crop((left, top, left + width, top + height))
        return planes(picture)

    def upright(self, picture: Image.Image) -> Image.Image:
        """A picture turned upright, in the channels that the network reads. Raises SlimrankError for channels of no picture."""
        channels = len(self.mean)
        if channels not in MODES:
            raise SlimrankError(f"pictures have 1, 2, 3 or 4 channels, the network reads {channels}; use it without `data`")
        turned = turn(picture)
        picture = eight_bits(picture).convert(MODES[channels])
        return picture if turned is None else picture.transpose(turned)

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture before the crop, rounded as torchvision does (for squares) and timm (for others)."""
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        tall, wide = (math.floor(side / self.crop_pct) for side in self.shape[1:])
        if self.resize is not None:
            tall = wide = self.resize
        if tall == wide:
            short = min(width, height)
            return int(tall * width / short), int(tall * height / short)
        ratio = min(width / wide, height / tall)
        return round(width / ratio), round(height / ratio)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 [images, channels, height, width] to float32."""
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (pixels.float() / 255 - mean.to(pixels.device)) / std.to(pixels.device)


def planes(picture: Image.Image) -> np.ndarray:
    """A picture's pixels, uint8 [channels, height, width]."""
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def sides(side: Side, name: str) -> tuple[int, int]:
    """Height and width; raises SlimrankError for the parameter `name` where they are none."""
    height, width = side if isinstance(side, tuple) else (side, side)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise SlimrankError(f"`{name}` is {shown(side)}, must lie in 1..{MAX_SIDE} pixels")
    return height, width


def shown(side: Side) -> str:
    """A side as the command line reads it."""
    return f"{side[0]}x{side[1]}" if isinstance(side, tuple) else str(side)
