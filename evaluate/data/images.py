"""One split's images: decoded when they are used, cached where they are few, served in batches."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from .decode import opened
from .loading import Batch, decoded
from .preprocessing import Preprocessing
from .random_crop import random_crop

CACHE_BYTES = 2**30  # a split that decodes to less is decoded once
THREADS = 4  # that decode in a process
DECODED = 250  # images at once, where nothing else is asked for
EVERY = slice(None)

Picture = str | Path | np.ndarray  # a file, or uint8 [height, width(, 3)]


class Images:
    """The images of one split: `pictures`, their classes `labels` (int64 [images]), and how a network reads them.

    `workers`: processes that decode them; 0 decodes in threads of this one.
    """

    def __init__(self, pictures: Sequence[Picture], labels: Tensor, preprocessing: Preprocessing, workers: int = 0):
        self.pictures, self.labels, self.preprocessing, self.workers = pictures, labels, preprocessing, workers
        self._cache: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def labelled(self) -> bool:
        """Whether each image has a class."""
        return not bool((self.labels < 0).any())

    def subset(self, index: Tensor) -> "Images":
        """Choose images by their positions, in the order given."""
        chosen = Images([self.pictures[i] for i in index.tolist()], self.labels[index], self.preprocessing, self.workers)
        chosen._cache = None if self._cache is None else self._cache[index]
        return chosen

    def sample(self, n: int, seed: int) -> "Images":
        """Choose the first `n` images (all where there are fewer) of a shuffle with `seed`."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:n])

    def read(self, index: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """Decode images: uint8 [images, channels, height, width]; `seeds`: of a random crop of each.

        Raises SlimrankError that names a file which is no image.
        """
        with ThreadPoolExecutor(THREADS if get_worker_info() is None else 1) as pool:
            crops = [None] * len(index) if seeds is None else seeds
            return torch.from_numpy(np.stack(list(pool.map(self._read, index, crops))))

    def _read(self, i: int, seed: int | None) -> np.ndarray:
        picture = self.pictures[i]
        if isinstance(picture, np.ndarray):
            return self._pixels(Image.fromarray(picture), seed)
        with opened(picture) as file:
            return self._pixels(file, seed)

    def _pixels(self, picture: Image.Image, seed: int | None) -> np.ndarray:
        return self.preprocessing.pixels(picture) if seed is None else random_crop(picture, self.preprocessing, seed)

    def read_batch(self, batch: Batch) -> Tensor:
        """As `read`, in one argument, as a worker takes it."""
        return self.read(*batch)

    @property
    def _cached(self) -> Tensor | None:
        """All images, decoded once, where they are small enough to keep; else None."""
        channels, height, width = self.preprocessing.shape
        if self._cache is None and len(self) * channels * height * width <= CACHE_BYTES:
            parts = [(part.tolist(), None) for part in torch.arange(len(self)).split(DECODED)]
            self._cache = torch.cat(list(decoded(self.read_batch, parts, self.workers)))
        return self._cache

    def pixels(self, index: Tensor) -> Tensor:
        """Images by their positions, uint8 [images, channels, height, width]; a small split is decoded whole and kept."""
        cached = self._cached
        return self.read(index.tolist()) if cached is None else cached[index]

    def stream(self, parts: Sequence[Tensor], seeds: Tensor | None = None) -> Iterator[Tensor]:
        """The pixels of each part, positions of images; those that are not kept are decoded by the workers.

        `seeds` [images]: a random crop of each instead of the middle, always decoded anew.
        """
        cached = self._cached if seeds is None else None
        if cached is not None:
            yield from (cached[part] for part in parts)
        else:
            batches = [(part.tolist(), None if seeds is None else seeds[part].tolist()) for part in parts]
            yield from decoded(self.read_batch, batches, self.workers)

    def batches(
        self, size: int = DECODED, *, shuffle: torch.Generator | None = None, device: str = "cpu", crops: bool = False,
        rows: slice = EVERY,
    ) -> "Batches":  # fmt: skip
        """Normalised float32 images [<= size, channels, height, width] and labels; in order unless `shuffle` is given.

        `crops`: random ones, drawn with `shuffle`, other ones in each pass. `rows`: of each batch; the others are not decoded.
        """
        return Batches(self, size, shuffle, device, crops, rows)


@dataclass(frozen=True)
class Batches:
    """Images and labels, batch by batch; can be iterated again."""

    images: Images
    size: int
    shuffle: torch.Generator | None
    device: str
    crops: bool = False
    rows: slice = field(default_factory=lambda: EVERY)
    chosen: slice = field(default_factory=lambda: EVERY)

    def __len__(self) -> int:
        return len(range(math.ceil(len(self.images) / self.size))[self.chosen])

    def __getitem__(self, chosen: slice) -> "Batches":
        """Some of the batches, as of a list; the others are not decoded."""
        assert self.chosen == EVERY
        return replace(self, chosen=chosen)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        order = torch.arange(n) if self.shuffle is None else torch.randperm(n, generator=self.shuffle)
        seeds = torch.randint(2**62, (n,), generator=self.shuffle) if self.crops else None
        parts = [part[self.rows] for part in torch.split(order, self.size)[self.chosen]]
        for part, pixels in zip(parts, self.images.stream(parts, seeds), strict=True):
            x = self.images.preprocessing.normalise(pixels.to(self.device))
            yield x, self.images.labels[part].to(self.device)
