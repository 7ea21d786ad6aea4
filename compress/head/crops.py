"""Random crops of calibration images: more to fit a head to than there are pictures, without a label."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transform

SMALLEST = 0.35  # share of the area that a crop keeps at least
NARROWEST = 3 / 4  # width over height of a crop, and the inverse


def with_crops(batches: Iterable[tuple[Tensor, Tensor]], crops: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each batch, then `crops` random crops of every image of it, half of them mirrored, in the images' size.

    images [n, channels, height, width], labels [n]; a crop has its image's label.
    """
    generator = torch.Generator().manual_seed(seed)
    for images, labels in batches:
        yield images, labels
        for _ in range(crops):
            yield torch.stack([_cropped(image, generator) for image in images]), labels


def _cropped(image: Tensor, generator: torch.Generator) -> Tensor:
    area, ratio, down, right, mirror = torch.rand(5, generator=generator).tolist()
    height, width = image.shape[1:]
    shape = math.exp((2 * ratio - 1) * math.log(NARROWEST))
    side = math.sqrt(SMALLEST + area * (1 - SMALLEST))
    tall, wide = (min(full, max(1, round(full * side * f))) for full, f in ((height, shape**-0.5), (width, shape**0.5)))
    top, left = round(down * (height - tall)), round(right * (width - wide))
    crop: Tensor = transform.resized_crop(image, top, left, tall, wide, [height, width], antialias=True)
    return crop.flip(2) if mirror < 0.5 else crop
