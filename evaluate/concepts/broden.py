"""Images with pixel-wise concepts in the layout of Broden (Bau et al. 2017), read as published.

    DIR/index.csv    image,split,ih,iw,sh,sw and a column a category: label maps and numbers, separated by ;
    DIR/label.csv    number,name,category,frequency,...   category as "object(8);part(2)"
    DIR/images/      the pictures and the label maps (PNG: red + 256 green is the label's number, 0 is none)

A number in place of a map labels every pixel of the image (scenes and textures).
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import SlimrankError
from ...files import Scratch, read_file
from ..data import Preprocessing
from ..data.decode import opened

CATEGORIES = ("object", "part", "color", "scene", "material", "texture")
SPELLINGS = {"colour": "color"}
MAX_SIDE = 4096  # pixels of a label map
MAX_ROWS = 500_000  # of a list; Broden has 63,305 images
LONGEST = 200  # characters of a file's name
MAX_MASKS = 2**28  # pixels in the masks of one image


class Concepts:
    """A folder in Broden's layout. `names[i]` and `category[i]` of concept i; `shape`: of all label maps, (sh, sw).

    A label of several categories counts under the one it is most frequent in. Raises SlimrankError for a folder that is
    none, and names the file that is missing, mis-sized or no picture.
    """

    def __init__(self, folder: str | Path, limit: int | None = None):
        self.folder = Path(folder)
        self.temporary: Scratch | None = None  # a folder that is removed when these concepts are forgotten
        rows = self._read("index.csv", ("image", "sh", "sw"))
        self.columns = [category for category in CATEGORIES if category in rows[0]]
        if not self.columns:
            raise SlimrankError(f"{self.folder}/index.csv has none of the columns {', '.join(CATEGORIES)}; check the folder")
        self.rows = rows[:limit]
        self.shape = self._map_shape()
        labels = self._read("label.csv", ("number", "name", "category"))
        numbers = [self._count(row["number"], "label.csv", "a label's number") for row in labels]
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        if twice:
            raise SlimrankError(f"{self.folder}/label.csv: label {twice[0]} stands there twice; number labels once each")
        self.names = [row["name"].strip() for row in labels]
        self.category = [self._primary(row["category"]) for row in labels]
        nameless = [number for number, name in zip(numbers, self.names, strict=True) if not name]
        if nameless:
            raise SlimrankError(f"{self.folder}/label.csv: label {nameless[0]} has no name; give it one")
        self.place = {number: i for i, number in enumerate(numbers)}
        self._check_files()

    def _map_shape(self) -> tuple[int, int]:
        """Height and width of the label maps, which are the same for all images."""
        sizes = {(row["sh"], row["sw"]) for row in self.rows}
        if len(sizes) > 1:
            raise SlimrankError(
                f"{self.folder}/index.csv: label maps of different sizes, {str(sorted(sizes)[:2])[:80]}; make them one"
            )
        height, width = (self._count(side, "index.csv", "sh and sw") for side in next(iter(sizes)))
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            raise SlimrankError(f"{self.folder}/index.csv: label maps of {height}x{width} pixels; 1 to {MAX_SIDE} a side")
        return height, width

    def _check_files(self) -> None:
        """Raise SlimrankError where a file that index.csv names is not there."""
        if not all(row["image"] for row in self.rows):
            raise SlimrankError(f"{self.folder}/index.csv: a row names no image; mend or remove it")
        files = [name for row in self.rows for name in (row["image"], *self._maps(row))]
        if outside := next(filter(_leaves, files), None):
            raise SlimrankError(f"{self.folder}/index.csv names {outside[:80]!r}, no file in its images/; mend that row")
        missing = [name for name in files if not (self.folder / "images" / name).is_file()]
        if missing:
            raise SlimrankError(
                f"{self.folder}/images lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + " that index.csv names; copy the whole folder"
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
        """The rows of a CSV file, at least one, that has these columns."""
        path = self.folder / name
        try:
            text = read_file(path, "the list").decode("utf-8-sig")
            rows = list(islice(csv.DictReader(io.StringIO(text, newline="")), MAX_ROWS + 1))
        except SlimrankError as error:
            raise SlimrankError(f"{error}; `concepts` takes a folder in Broden's layout, or generated") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise SlimrankError(f"cannot read {path} ({error}); `concepts` takes a folder in Broden's layout") from error
        if len(rows) > MAX_ROWS:
            raise SlimrankError(f"{path} has more than {MAX_ROWS:,} rows; `concepts` takes a folder in Broden's layout")
        lacking = [c for c in columns if not rows or c not in rows[0]]
        if lacking:
            raise SlimrankError(f"{path} has no column {lacking[0]} or no rows; `concepts` takes a folder in Broden's layout")
        return [{key: value or "" for key, value in row.items() if isinstance(value, str | None)} for row in rows]

    def _primary(self, text: str) -> str:
        """The category of "object(8);part(2)" with the highest count."""
        counted = re.findall(r"([a-z]+)(?:\((\d+)\))?", text.lower())
        if not counted:
            raise SlimrankError(f"{self.folder}/label.csv: no category in {text[:40]!r}; there are {', '.join(CATEGORIES)}")
        name: str = max(counted, key=lambda item: int(item[1][:9] or 0))[0]
        name = SPELLINGS.get(name, name)
        if name not in CATEGORIES:
            raise SlimrankError(f"{self.folder}/label.csv: no category {name[:40]!r}; there are {', '.join(CATEGORIES)}")
        return name

    def _count(self, text: str, file: str, what: str) -> int:
        """Read a whole number of at most nine digits."""
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise SlimrankError(f"{self.folder}/{file}: {what} must be a whole number, not {text[:20]!r}; mend it")
        return int(text)

    def _items(self, row: dict[str, str]) -> Iterator[str]:
        """What a row of index.csv names in its category columns: label maps, or numbers that label the whole image."""
        for column in self.columns:
            yield from (item for item in row[column].split(";") if item)

    def _maps(self, row: dict[str, str]) -> Iterator[str]:
        return (item for item in self._items(row) if not item.isdecimal())

    def pixels(self, i: int, preprocessing: Preprocessing) -> Tensor:
        """Image i as the network sees it: the whole picture, whatever its shape; uint8 [channels, height, width]."""
        whole = replace(preprocessing, resize=preprocessing.shape[1:], crop_pct=1.0, interpolation="bilinear")
        return torch.from_numpy(whole.pixels(self._open(self.rows[i]["image"])).copy())

    def annotation(self, i: int) -> tuple[Tensor, Tensor]:
        """The concepts in image i (positions in `names`, [concepts]) and the pixels of each, bool [concepts, sh, sw]."""
        row = self.rows[i]
        masks: dict[int, np.ndarray] = {}
        for item in self._items(row):
            for number, mask in self._labels(item):
                if number not in self.place:
                    raise SlimrankError(f"{self.folder}: {item} of {row['image']} holds label {number}, which label.csv lacks")
                if len(masks) * mask.size > MAX_MASKS:
                    raise SlimrankError(
                        f"{self.folder}: the maps of {row['image']} hold too many labels for their size; mend them"
                    )
                at = self.place[number]
                masks[at] = masks[at] | mask if at in masks else mask
        present = sorted(masks)
        stacked = np.stack([masks[c] for c in present]) if present else np.zeros((0, *self.shape), bool)
        return torch.tensor(present, dtype=torch.long), torch.from_numpy(stacked)

    def _labels(self, item: str) -> Iterator[tuple[int, np.ndarray]]:
        """The numbers of the labels in a label map, each with its pixels, bool [sh, sw]."""
        if item.isdecimal():
            yield self._count(item, "index.csv", "a label"), np.ones(self.shape, bool)
            return
        picture = self._open(item)
        if picture.mode in ("L", "1", "I", "I;16", "F"):
            raise SlimrankError(f"{self.folder}/images/{item} is a grey picture; label maps are RGB, red + 256 green the label")
        array = np.asarray(picture.convert("RGB")).astype(np.int32)
        if array.shape[:2] != self.shape:
            seen = "x".join(map(str, array.shape[:2]))
            raise SlimrankError(
                f"{self.folder}/images/{item} is {seen} pixels, index.csv says {self.shape[0]}x{self.shape[1]}; make it again"
            )
        labels = array[:, :, 0] + 256 * array[:, :, 1]
        for number in np.unique(labels):
            if number:
                yield int(number), labels == number

    def _open(self, name: str) -> Image.Image:
        path = self.folder / "images" / name
        with opened(path) as picture:
            picture.load()
            return picture


def _leaves(name: str) -> bool:
    """Whether a file's name leads out of the folder that it is looked for in, or nowhere."""
    return "\0" in name or len(name) > LONGEST or Path(name).is_absolute() or ".." in Path(name).parts
