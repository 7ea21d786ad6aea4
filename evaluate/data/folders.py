"""folder:DIR: train/, val/ and test/, each with a folder a class."""

import os
from pathlib import Path

import torch

from ...errors import SlimrankError
from ...files import read_file
from .images import Images
from .listing import Listing, visible
from .preprocessing import Preprocessing

SPELLINGS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}


def open_folder(root: Path, preprocessing: Preprocessing) -> tuple[list[str], dict[str, Images]]:
    """List a folder's images: class names, and the splits by name (train, validation, test; not every one need be there).

    Hidden files and folders are passed over; other files that are no pictures are counted and told. Raises SlimrankError where
    there is no split, a class has no image, or the splits differ in classes.
    """
    if not root.is_dir():
        raise SlimrankError(f"`data` folder:{root}: there is no such folder; check the path")
    folders = {key: root / name for key, names in SPELLINGS.items() for name in names if (root / name).is_dir()}
    if not folders:
        raise SlimrankError(f"{root} holds no train/, val/ or test/ folder; point folder: at the folder that does")
    roles = _roles(set(folders))
    splits: dict[str, Images] = {}
    classes: list[str] = []
    listing = Listing()
    for key, folder in folders.items():
        pictures = _by_class(folder, listing)
        if classes and classes != list(pictures):
            odd = sorted(set(classes) ^ set(pictures))[:3]
            raise SlimrankError(f"{folder} and its sibling folders differ in classes ({', '.join(odd)}); make them the same")
        classes = list(pictures)
        labels = [i for i, paths in enumerate(pictures.values()) for _ in paths]
        splits[roles[key]] = Images(
            [path for paths in pictures.values() for path in paths], torch.tensor(labels), preprocessing
        )
    for name in classes:
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise SlimrankError(f"{root}: the name of the class folder {shown} is not UTF-8; rename it")
    listing.tell(f"folder:{root}")
    return classes, splits


def _by_class(folder: Path, listing: Listing) -> dict[str, list[str]]:
    """The pictures of each class, in the order of torchvision's ImageFolder."""
    entries = visible(folder)
    pictures = {
        entry.name: sorted(listing.below(entry.path, follow=True), key=os.path.split) for entry in entries if entry.is_dir()
    }
    if not pictures:
        raise SlimrankError(f"{folder} holds no folders; every class needs a folder with its images")
    if empty := [name for name, paths in pictures.items() if not paths]:
        raise SlimrankError(
            f"{folder}: no pictures in the folder{'s' if len(empty) > 1 else ''} {', '.join(empty[:3])}{listing.others}; every "
            "class needs images of its own"
        )
    for entry in entries:
        if not entry.is_dir():
            listing.left_out["outside the classes' folders"] += 1
    return pictures


def _roles(present: set[str]) -> dict[str, str]:
    """Which split each folder is: val/ is validation beside test/, and test beside train/ alone or on its own."""
    val = "validation" if {"val", "test"} <= present else "test"
    return {"train": "train", "val": val, "test": "test"}


def read_names(root: Path) -> dict[str, str]:
    """Read words.txt (id, tab, names, as ImageNet's): the first name of each id; empty where there is no such file."""
    path = root / "words.txt"
    if not path.exists():
        return {}
    text = read_file(path, "names of classes").decode("utf-8", errors="replace")
    lines = (line.partition("\t") for line in text.splitlines())
    return {key: names.partition(",")[0].strip() for key, _, names in lines}
