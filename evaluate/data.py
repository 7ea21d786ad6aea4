"""Images by --data SPEC, their splits, and the preprocessing that travels with a model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import SlimrankError, near

KINDS = ("digits", "mnist:DIR", "fashion-mnist:DIR", "cifar10:DIR", "cifar100:DIR", "folder:DIR")
CACHE_BYTES = 2**30  # a split that decodes to less is decoded once
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model: shorter side to `size` pixels, centre crop, /255, minus mean, over std.

    As many channels as `mean` has entries: 1 reads grey, 3 reads RGB.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise SlimrankError(f"--mean has {len(self.mean)} values, --std {len(self.std)}; give 1 or 3 of each")
        if min(self.std) <= 0 or self.size < 1:
            what = f"--size {self.size}" if self.size < 1 else f"--std {self.std}"
            raise SlimrankError(f"{what} must be positive")

    @classmethod
    def default(cls, channels: int, size: int) -> "Preprocessing":
        """ImageNet's mean and standard deviation for three channels, 0.5 and 0.5 for one."""
        mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        return cls(size, mean, std)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Preprocessing":
        """From what `vars` gave, through JSON."""
        return cls(int(value["size"]), tuple(map(float, value["mean"])), tuple(map(float, value["std"])))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.mean), self.size, self.size

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """uint8 [channels, size, size]."""
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
        """float32, from uint8 [images, channels, size, size]."""
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (pixels.float() / 255 - mean.to(pixels.device)) / std.to(pixels.device)


class Images:
    """One split. `pictures[i]` is a file path or a uint8 array [height, width(, 3)]; `labels` is int64 [images]."""

    def __init__(self, pictures: Sequence[Any], labels: Tensor, preprocessing: Preprocessing):
        self.pictures, self.labels, self.preprocessing = pictures, labels, preprocessing
        self._cache: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def subset(self, index: Tensor) -> "Images":
        chosen = Images([self.pictures[i] for i in index.tolist()], self.labels[index], self.preprocessing)
        chosen._cache = None if self._cache is None else self._cache[index]
        return chosen

    def read(self, index: Sequence[int]) -> Tensor:
        """uint8 [images, channels, size, size]; raises SlimrankError that names a file which is no image."""
        with ThreadPoolExecutor(4) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, index))))

    def _read(self, i: int) -> np.ndarray:
        picture = self.pictures[i]
        try:
            if isinstance(picture, np.ndarray):
                return self.preprocessing.pixels(Image.fromarray(picture))
            with Image.open(picture) as opened:
                return self.preprocessing.pixels(opened)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise SlimrankError(f"{picture} cannot be read as an image ({error}); mend or remove it") from error

    def pixels(self, index: Tensor) -> Tensor:
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
        for index in order.split(self.size):
            pixels = self.images.pixels(index).to(self.device)
            yield self.images.preprocessing.normalise(pixels), self.images.labels[index].to(self.device)


@dataclass(frozen=True)
class Data:
    """The three splits of one data set."""

    spec: str
    classes: list[str]
    train: Images | None
    validation: Images | None
    test: Images | None
    validation_from: str
    channels: int  # 1 for grey data, 3 for colour
    seed: int
    limit: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which images are in which split."""
        return {"data": self.spec, "validation": self.validation_from, "seed": self.seed, "limit": self.limit}

    def split(self, name: str) -> Images:
        found = getattr(self, name)
        if found is None or not len(found):
            raise SlimrankError(f"--data {self.spec} has no {name} images; add a {name} split or choose other data")
        return found


def readable(data: Data) -> list[str]:
    """Class names for people: the first name that a folder's words.txt (id, tab, names, as ImageNet's) has for each, where
    it has one; names that would be alike keep their id."""
    kind, _, place = data.spec.partition(":")
    path = Path(place) / "words.txt"
    if kind != "folder" or not path.is_file():
        return data.classes
    lines = (line.partition("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    words = {key: names.partition(",")[0].strip() for key, _, names in lines}
    shown = [words.get(name) or name for name in data.classes]
    return [f"{word} ({name})" if shown.count(word) > 1 else word for word, name in zip(shown, data.classes, strict=True)]


def open_data(
    spec: str,
    preprocessing: Preprocessing,
    *,
    validation: str = "train:0.1",
    limit: int | None = None,
    seed: int = 0,
    download: bool = False,
) -> Data:
    """Read a data set's index (images are decoded when used).

    `validation`, `train:F` or `test:F`: the seeded share F of that split that becomes validation; a folder with train/,
    val/ and test/ brings its own. `limit`: at most that many images of each split, drawn with `seed`.
    """
    kind, _, place = spec.partition(":")
    if kind == "folder":
        classes, parts = _folders(Path(place), preprocessing)
    elif kind in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100"):
        classes, parts = _known(kind, place, preprocessing, download)
    else:
        raise SlimrankError(f"no data kind {kind!r}; {near(kind, KINDS)}")
    channels = 1 if kind in ("digits", "mnist", "fashion-mnist") else 3
    generator = torch.Generator().manual_seed(seed)
    if parts.get("validation") is None:
        source, share = _share(validation)
        if parts.get(source) is None:
            raise SlimrankError(f"--validation {validation}: {spec} has no {source} split; take the other one")
        parts["validation"], parts[source] = _divide(parts[source], share, generator)
    else:
        validation = "its own folder"
    if limit is not None:
        if limit < 1:
            raise SlimrankError(f"--limit is {limit}, must be at least 1 image")
        parts = {
            name: p and p.subset(torch.randperm(len(p), generator=generator)[:limit].sort().values) for name, p in parts.items()
        }
    return Data(spec, classes, parts.get("train"), parts["validation"], parts.get("test"), validation, channels, seed, limit)


def _share(validation: str) -> tuple[str, float]:
    source, _, share = validation.partition(":")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if source not in ("train", "test") or not 0 < value < 1:
        raise SlimrankError(f"--validation {validation!r} must be train:F or test:F with F between 0 and 1, as train:0.1")
    return source, value


def _divide(images: Images, share: float, generator: torch.Generator) -> tuple[Images, Images]:
    order = torch.randperm(len(images), generator=generator)
    n = max(1, round(share * len(images)))
    return images.subset(order[:n].sort().values), images.subset(order[n:].sort().values)


def _folders(root: Path, preprocessing: Preprocessing) -> tuple[list[str], dict[str, Images]]:
    from torchvision.datasets import ImageFolder

    names = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}
    found = {key: root / n for key, options in names.items() for n in options if (root / n).is_dir()}
    if not root.is_dir():
        raise SlimrankError(f"--data folder:{root}: there is no such folder; check the path")
    if not found:
        raise SlimrankError(f"{root} holds no train/, val/ or test/ folder; point folder: at the folder that does")
    if len(found) == 3:
        roles = {"train": "train", "val": "validation", "test": "test"}
    else:  # with two, the second is test; a lone one is what it is called
        roles = {"train": "train", "val": "test", "test": "test"}
        if "train" not in found and len(found) == 2:
            roles["val"] = "validation"
    parts, classes = {}, None
    for key, folder in found.items():
        try:
            listing = ImageFolder(folder, loader=str)
        except FileNotFoundError as error:
            reason = str(error).splitlines()[0].split(" Supported")[0].rstrip(".")
            raise SlimrankError(f"{folder}: {reason}; every class needs images of its own") from error
        if classes is not None and classes != listing.classes:
            odd = sorted(set(classes) ^ set(listing.classes))[:3]
            raise SlimrankError(f"{folder} and its sibling folders differ in classes ({', '.join(odd)}); make them the same")
        classes = listing.classes
        labels = torch.tensor(listing.targets)
        parts[roles[key]] = Images([path for path, _ in listing.samples], labels, preprocessing)
    assert classes is not None
    return classes, parts


def _known(kind: str, place: str, preprocessing: Preprocessing, download: bool) -> tuple[list[str], dict[str, Images]]:
    if kind == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures = (digits.images * (255 / 16)).round().astype(np.uint8)
        labels = torch.from_numpy(digits.target).long()
        # The set comes without a split: a fifth of it, always the same, is test.
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        whole = Images(list(pictures), labels, preprocessing)
        n = len(labels) // 5
        return [str(i) for i in range(10)], {"test": whole.subset(order[:n]), "train": whole.subset(order[n:])}
    from torchvision import datasets

    if not place:
        raise SlimrankError(f"--data {kind} needs a folder, as {kind}:DIR; add --download to fetch it there")
    makers = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    parts = {}
    for train in (True, False):
        try:
            made = makers[kind](place, train=train, download=download)
        except (RuntimeError, OSError) as error:
            wanted = "raw/*-ubyte under DIR/" + makers[kind].__name__ if "mnist" in kind else "torchvision's layout"
            reason = str(error).splitlines()[0].split(" You can use download")[0].rstrip(".")
            raise SlimrankError(f"--data {kind}:{place}: {reason}; it needs {wanted}, or --download") from error
        pictures = made.data.numpy() if isinstance(made.data, Tensor) else made.data
        labels = torch.as_tensor(made.targets)
        parts["train" if train else "test"] = Images(list(pictures), labels, preprocessing)
    return list(made.classes), parts
