"""images:DIR: pictures without classes, in one folder or in folders below it."""

from pathlib import Path

import torch

from ...errors import SlimrankError
from ..dataspec import UNLABELLED
from .images import Images
from .listing import Listing
from .preprocessing import Preprocessing

NO_LABEL = -1  # of every image: no class has this number, so that none is ever right


def open_unlabelled(place: str, preprocessing: Preprocessing) -> dict[str, Images]:
    """List the pictures below a folder, sorted by path; a fifth, always the same, is test, the rest train.

    What is hidden is passed over, and links to folders are not followed; other files that are no pictures are counted and
    told. Raises SlimrankError where there is no picture.
    """
    if not place:
        raise SlimrankError(f"`data` {UNLABELLED} needs a folder, as {UNLABELLED}:DIR")
    root = Path(place)
    if not root.is_dir():
        raise SlimrankError(f"`data` {UNLABELLED}:{root}: there is no such folder; check the path")
    listing = Listing()
    pictures = sorted(listing.below(root, follow=False))
    if not pictures:
        raise SlimrankError(f"`data` {UNLABELLED}:{root} holds no pictures, as .jpg or .png{listing.others}; check the path")
    listing.tell(f"{UNLABELLED}:{root}")
    whole = Images(pictures, torch.full((len(pictures),), NO_LABEL), preprocessing)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    fifth = len(whole) // 5
    return {"test": whole.subset(order[:fifth].sort().values), "train": whole.subset(order[fifth:].sort().values)}
