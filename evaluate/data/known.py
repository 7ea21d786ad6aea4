"""Data sets known by name: scikit-learn's digits, glyphs drawn here, and torchvision's in its own layout on disk."""

from typing import Any

import numpy as np
import torch

from ...errors import SlimrankError
from . import glyphs
from .images import Images
from .preprocessing import Preprocessing

GREY = ("digits", "glyphs", "mnist", "fashion-mnist")
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def open_digits(preprocessing: Preprocessing) -> tuple[list[str], dict[str, Images]]:
    """Class names and splits of scikit-learn's digits; the set comes without a split: a fifth, always the same, is test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    whole = Images(list(pictures), labels, preprocessing)
    fifth = len(labels) // 5
    return [str(i) for i in range(10)], {"test": whole.subset(order[:fifth]), "train": whole.subset(order[fifth:])}


def open_glyphs(preprocessing: Preprocessing) -> tuple[list[str], dict[str, Images]]:
    """Class names and splits of the 400 characters of glyphs.py."""
    drawn = {name: glyphs.split(name) for name in ("train", "test")}
    return glyphs.class_names(), {
        name: Images(list(pictures), torch.from_numpy(labels).long(), preprocessing)
        for name, (pictures, labels) in drawn.items()
    }


def open_torchvision(
    kind: str, folder: str, preprocessing: Preprocessing, download: bool
) -> tuple[list[str], dict[str, Images]]:
    """Class names and splits of a set of TORCHVISION; raises SlimrankError where the folder does not hold it."""
    from torchvision import datasets

    if not folder:
        raise SlimrankError(f"`data` {kind} needs a folder, as {kind}:DIR; add `download` to fetch it there")
    splits = {}
    for train in (True, False):
        try:
            dataset: Any = getattr(datasets, TORCHVISION[kind])(folder, train=train, download=download)
            pictures, labels = np.asarray(dataset.data), torch.as_tensor(dataset.targets)
            if len(pictures) != len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes):
                raise ValueError("its labels are not those of its pictures")
        except Exception as error:  # of damaged files torchvision raises what it likes
            wanted = f"raw/*-ubyte under DIR/{TORCHVISION[kind]}" if "mnist" in kind else "torchvision's layout"
            reason = (str(error) or type(error).__name__).splitlines()[0].split(" You can use download")[0].rstrip(".")
            raise SlimrankError(f"`data` {kind}:{folder}: {reason}; it needs {wanted}, or `download`") from error
        splits["train" if train else "test"] = Images(list(pictures), labels, preprocessing)
    return list(dataset.classes), splits
