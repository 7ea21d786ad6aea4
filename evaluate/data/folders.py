"""folder:DIR: train/, val/ and test/, each with a folder a class."""

from pathlib import Path

import torch

from ...errors import SlimrankError
from .images import Images
from .preprocessing import Preprocessing

SPELLINGS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}


def open_folder(root: Path, preprocessing: Preprocessing) -> tuple[list[str], dict[str, Images]]:
    """List a folder's images: class names, and the splits by name (train, validation, test; not every one need be there).

    Raises SlimrankError where there is no split, a class has no image, or the splits differ in classes.
    """
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise SlimrankError(f"`data` folder:{root}: there is no such folder; check the path")
    folders = {key: root / name for key, names in SPELLINGS.items() for name in names if (root / name).is_dir()}
    if not folders:
        raise SlimrankError(f"{root} holds no train/, val/ or test/ folder; point folder: at the folder that does")
    roles = _roles(set(folders))
    splits: dict[str, Images] = {}
    classes: list[str] = []
    for key, folder in folders.items():
        try:
            listing = ImageFolder(folder, loader=str)
        except FileNotFoundError as error:
            reason = str(error).splitlines()[0].split(" Supported")[0].rstrip(".")
            raise SlimrankError(f"{folder}: {reason}; every class needs images of its own") from error
        if classes and classes != listing.classes:
            odd = sorted(set(classes) ^ set(listing.classes))[:3]
            raise SlimrankError(f"{folder} and its sibling folders differ in classes ({', '.join(odd)}); make them the same")
        classes = listing.classes
        splits[roles[key]] = Images([path for path, _ in listing.samples], torch.tensor(listing.targets), preprocessing)
    return classes, splits


def _roles(present: set[str]) -> dict[str, str]:
    """Which split each folder is: val/ is validation beside test/, and test beside train/ alone or on its own."""
    val = "validation" if {"val", "test"} <= present else "test"
    return {"train": "train", "val": val, "test": "test"}


def read_names(root: Path) -> dict[str, str]:
    """Read words.txt (id, tab, names, as ImageNet's): the first name of each id; empty where there is no such file."""
    path = root / "words.txt"
    if not path.is_file():
        return {}
    lines = (line.partition("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key: names.partition(",")[0].strip() for key, _, names in lines}
