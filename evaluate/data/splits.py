"""A data set in three splits: train; validation, which choices are made on; test, which is reported only."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError, near
from ..dataspec import UNLABELLED, needs_labels
from .folders import open_folder, read_names
from .images import Images
from .known import GREY, TORCHVISION, open_digits, open_glyphs, open_torchvision
from .loading import MAX_WORKERS
from .preprocessing import Preprocessing
from .unlabelled import open_unlabelled

KINDS = ("digits", "glyphs", "mnist:DIR", "fashion-mnist:DIR", "cifar10:DIR", "cifar100:DIR", "folder:DIR", "images:DIR")


@dataclass(frozen=True)
class Data:
    """The three splits of one data set; `channels`: 1 for grey data, 3 for colour.

    `classes` None: the images have no labels. `validation_from`: `train:F` or `test:F`, the share F of that split that became
    validation, or "its own folder".
    """

    spec: str
    classes: list[str] | None
    train: Images | None
    validation: Images | None
    test: Images | None
    validation_from: str
    channels: int
    seed: int
    limit: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which images are in which split, as JSON."""
        return {"data": self.spec, "validation": self.validation_from, "seed": self.seed, "limit": self.limit}

    @property
    def fingerprint(self) -> str:
        """A hash that changes when a picture file does: of every name, size and time of change. No picture is read."""
        return self._hashed(lambda known: (known.st_size, known.st_mtime_ns))

    @property
    def listing(self) -> str:
        """A hash of classes, and of every picture's path and size; the same on machines that have copies of the files."""
        return hashlib.sha256(repr((self.classes, self._hashed(lambda known: known.st_size))).encode()).hexdigest()[:12]

    def _hashed(self, told: Callable[[os.stat_result], object]) -> str:
        """A hash of the path of every picture file, and of what is `told` of it."""
        digest = hashlib.sha256()
        for images in (self.train, self.validation, self.test):
            for picture in images.pictures if images is not None else ():
                if isinstance(picture, (str, Path)):
                    known = told(os.stat(picture)) if os.path.exists(picture) else None
                    digest.update(repr((os.fsencode(picture), known)).encode())
        return digest.hexdigest()

    def classes_for(self, what: str) -> list[str]:
        """The class names; raises SlimrankError, which says that `what` needs labels, where there are none."""
        if self.classes is None:
            raise needs_labels(what)
        return self.classes

    def split(self, name: str) -> Images:
        """The images of a split (train, validation, test); raises SlimrankError where there are none."""
        images = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if images is None or not len(images):
            raise SlimrankError(f"`data` {self.spec} has no {name} images; add a {name} split or choose other data")
        return images


def readable(data: Data) -> list[str]:
    """Name the classes for people: the first name that a folder's words.txt has for each; names that are alike keep the id."""
    kind, _, place = data.spec.partition(":")
    words = read_names(Path(place)) if kind == "folder" else {}
    classes = data.classes_for("a name for each class")
    shown = [words.get(name) or name for name in classes]
    return [f"{word} ({name})" if shown.count(word) > 1 else word for word, name in zip(shown, classes, strict=True)]


def differing(data: Data, names: list[str]) -> tuple[str, str] | None:
    """Find the first class that a model calls otherwise than the data, and both names.

    A class is known by its name in the data and by the first that a folder's words.txt has for it; of several names with
    commas between them the first counts.
    """
    kind, _, place = data.spec.partition(":")
    words = read_names(Path(place)) if kind == "folder" else {}
    pairs = zip(names, data.classes_for("a name for each class"), strict=True)
    return next(
        ((mine, other) for mine, other in pairs if mine != other and _first(mine) != _first(words.get(other, ""))), None
    )


def _first(names: str) -> str:
    return names.partition(",")[0].strip().lower()


def open_data(
    spec: str,
    preprocessing: Preprocessing,
    *,
    validation: str = "train:0.1",
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
    workers: int = 0,
) -> Data:
    """Read a data set's index (images are decoded when used).

    `validation`, `train:F` or `test:F`: the seeded share F of that split that becomes validation; a folder with train/,
    val/ and test/ brings its own. `limit`: at most that many images of each split, drawn with `seed`. `workers`: processes
    that decode.
    """
    if not 0 <= workers <= MAX_WORKERS:
        raise SlimrankError(f"`workers` is {workers}, must lie in 0..{MAX_WORKERS}; as many as there are free cores is usual")
    kind, _, place = spec.partition(":")
    classes: list[str] | None
    if kind == "folder":
        classes, splits = open_folder(Path(place), preprocessing)
    elif kind == "digits":
        classes, splits = open_digits(preprocessing)
    elif kind == "glyphs":
        classes, splits = open_glyphs(preprocessing)
    elif kind in TORCHVISION:
        classes, splits = open_torchvision(kind, place, preprocessing, download)
    elif kind == UNLABELLED:
        classes, splits = None, open_unlabelled(place, preprocessing)
    else:
        raise SlimrankError(f"no data kind {kind!r}; {near(kind, KINDS)}")
    for images in splits.values():
        images.workers = workers
    generator = torch.Generator().manual_seed(seed)
    if "validation" in splits:
        validation = "its own folder"
    else:
        source, share = _share(validation)
        if source not in splits:
            raise SlimrankError(f"`validation` {validation}: {spec} has no {source} split; take the other one")
        splits["validation"], splits[source] = _divide(splits[source], share, generator)
    if classes is None and not all(map(len, splits.values())):
        raise SlimrankError(
            f"`data` {spec} holds {sum(map(len, splits.values()))} pictures, too few for train, validation and test; "
            f"a fifth is test, and `validation` {validation}: add pictures"
        )
    if limit is not None:
        if limit < 1:
            raise SlimrankError(f"`limit` is {limit}, must be at least 1 image")
        splits = {name: _limited(images, limit, generator) for name, images in splits.items()}
    channels = 1 if kind in GREY else 3
    return Data(
        spec, classes, splits.get("train"), splits["validation"], splits.get("test"), validation, channels, seed, limit
    )  # fmt: skip


def _share(validation: str) -> tuple[str, float]:
    """Split `train:0.1` into the split's name and the share."""
    source, _, share = validation.partition(":")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if source not in ("train", "test") or not 0 < value < 1:
        raise SlimrankError(f"`validation` {validation!r} must be train:F or test:F with F between 0 and 1, as train:0.1")
    return source, value


def _divide(images: Images, share: float, generator: torch.Generator) -> tuple[Images, Images]:
    """Draw a share of the images (at least one); returns these and the rest, both in their old order."""
    order = torch.randperm(len(images), generator=generator)
    n = max(1, round(share * len(images)))
    return images.subset(order[:n].sort().values), images.subset(order[n:].sort().values)


def _limited(images: Images, limit: int, generator: torch.Generator) -> Images:
    return images.subset(torch.randperm(len(images), generator=generator)[:limit].sort().values)
