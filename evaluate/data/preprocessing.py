"""From a picture to the numbers that a network reads."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import SlimrankError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of red, green, blue


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `size` pixels, centre crop, divide by 255, subtract `mean`, divide by `std`.

    One `mean` and `std` a channel: 1 reads grey, 3 reads RGB. Raises SlimrankError for values that no image survives.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise SlimrankError(f"`mean` has {len(self.mean)} values, `std` {len(self.std)}; give 1 or 3 of each")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SlimrankError(f"`mean` {self.mean} and `std` {self.std} must be finite numbers")
        if min(self.std) <= 0 or self.size < 1:
            what = f"`size` {self.size}" if self.size < 1 else f"`std` {self.std}"
            raise SlimrankError(f"{what} must be positive")

    @classmethod
    def default(cls, channels: int, size: int) -> "Preprocessing":
        """ImageNet's mean and standard deviation for three channels, 0.5 and 0.5 for one."""
        mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        return cls(size, mean, std)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Preprocessing":
        """Read the JSON object that `dataclasses.asdict` made."""
        return cls(int(value["size"]), tuple(map(float, value["mean"])), tuple(map(float, value["std"])))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a preprocessed image."""
        return len(self.mean), self.size, self.size

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """Scale and crop a picture; uint8 [channels, size, size]."""
        picture = picture.convert("L" if len(self.mean) == 1 else "RGB")
        if picture.size != (self.size, self.size):
            scale = self.size / min(picture.size)
            width, height = (max(self.size, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            picture = picture.crop((left, top, left + self.size, top + self.size))
        array = np.asarray(picture)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise uint8 [images, channels, size, size] to float32."""
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (pixels.float() / 255 - mean.to(pixels.device)) / std.to(pixels.device)
