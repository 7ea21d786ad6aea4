"""One split's images: decoded when they are used, cached where they are few, served in batches."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import opened
from .preprocessing import Preprocessing

CACHE_BYTES = 2**30  # a split that decodes to less is decoded once

Picture = str | Path | np.ndarray  # a file, or uint8 [height, width(, 3)]


class Images:
    """The images of one split: `pictures`, their classes `labels` (int64 [images]), and how a network reads them."""

    def __init__(self, pictures: Sequence[Picture], labels: Tensor, preprocessing: Preprocessing):
        self.pictures, self.labels, self.preprocessing = pictures, labels, preprocessing
        self._cache: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def subset(self, index: Tensor) -> "Images":
        """Choose images by their positions, in the order given."""
        chosen = Images([self.pictures[i] for i in index.tolist()], self.labels[index], self.preprocessing)
        chosen._cache = None if self._cache is None else self._cache[index]
        return chosen

    def sample(self, n: int, seed: int) -> "Images":
        """Choose the first `n` images (all where there are fewer) of a shuffle with `seed`."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:n])

    def read(self, index: Sequence[int]) -> Tensor:
        """Decode images: uint8 [images, channels, height, width]; raises SlimrankError that names a file which is no image."""
        with ThreadPoolExecutor(4) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, index))))

    def _read(self, i: int) -> np.ndarray:
        picture = self.pictures[i]
        if isinstance(picture, np.ndarray):
            return self.preprocessing.pixels(Image.fromarray(picture))
        with opened(picture) as file:
            return self.preprocessing.pixels(file)

    def pixels(self, index: Tensor) -> Tensor:
        """Images by their positions, uint8 [images, channels, height, width]; a small split is decoded whole and kept."""
        channels, height, width = self.preprocessing.shape
        if self._cache is None and len(self) * channels * height * width <= CACHE_BYTES:
            self._cache = self.read(range(len(self)))
        return self.read(index.tolist()) if self._cache is None else self._cache[index]

    def batches(self, size: int = 250, *, shuffle: torch.Generator | None = None, device: str = "cpu") -> "Batches":
        """Normalised float32 images [<= size, channels, height, width] and labels; in order unless `shuffle` is given."""
        return Batches(self, size, shuffle, device)


@dataclass(frozen=True)
class Batches:
    """Images and labels, batch by batch; can be iterated again."""

    images: Images
    size: int
    shuffle: torch.Generator | None
    device: str

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        order = torch.arange(n) if self.shuffle is None else torch.randperm(n, generator=self.shuffle)
        for index in torch.split(order, self.size):
            pixels = self.images.pixels(index).to(self.device)
            yield self.images.preprocessing.normalise(pixels), self.images.labels[index].to(self.device)
