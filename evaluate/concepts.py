"""Images with pixel-wise concepts in the layout of Broden (Bau et al. 2017), read as published; and a generated set in it.

    DIR/index.csv    image,split,ih,iw,sh,sw and a column a category: label maps and numbers, separated by ;
    DIR/label.csv    number,name,category,frequency,...   category as "object(8);part(2)"
    DIR/images/      the pictures and the label maps (PNG: red + 256 green is the label's number, 0 is none)

A number in place of a map labels every pixel of the image (scenes and textures).
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import SlimrankError
from .data import Preprocessing

CATEGORIES = ("object", "part", "color", "scene", "material", "texture")
KNOWN = {"colour": "color"}
MAX_SIDE = 4096  # pixels of a label map


class Concepts:
    """A folder in Broden's layout. `names[i]`, `category[i]` of concept i; `shape`: of all label maps, (sh, sw).

    A label of several categories counts under the one it is most frequent in. Raises SlimrankError for a folder that is
    none, and names the file that is missing, mis-sized or no picture.
    """

    def __init__(self, folder: str | Path, limit: int | None = None):
        self.folder = Path(folder)
        self.temporary: Any = None  # what removes the folder when nobody needs it any more
        self.rows = self._read("index.csv", ("image", "sh", "sw"))
        present = [c for c in CATEGORIES if c in self.rows[0]]
        if not present:
            raise SlimrankError(f"{self.folder}/index.csv has none of the columns {', '.join(CATEGORIES)}; check the folder")
        self.columns = present
        self.rows = self.rows[:limit]
        sizes = {(row["sh"], row["sw"]) for row in self.rows}
        if len(sizes) > 1:
            raise SlimrankError(f"{self.folder}/index.csv: label maps of different sizes, {sorted(sizes)[:2]}; make them one")
        height, width = (self._count(side, "index.csv", "sh and sw") for side in next(iter(sizes)))
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            raise SlimrankError(f"{self.folder}/index.csv: label maps of {height}x{width} pixels; 1 to {MAX_SIDE} a side")
        self.shape = (height, width)
        labels = self._read("label.csv", ("number", "name", "category"))
        self.number = [self._count(row["number"], "label.csv", "a label's number") for row in labels]
        twice = [n for n in self.number if self.number.count(n) > 1]
        if twice:
            raise SlimrankError(f"{self.folder}/label.csv: label {twice[0]} stands there twice; number labels once each")
        self.names = [row["name"].strip() for row in labels]
        self.category = [self._primary(row["category"]) for row in labels]
        nameless = [n for n, name in zip(self.number, self.names, strict=True) if not name]
        if nameless:
            raise SlimrankError(f"{self.folder}/label.csv: label {nameless[0]} has no name; give it one")
        self.place = {number: i for i, number in enumerate(self.number)}
        if not all(row["image"] for row in self.rows):
            raise SlimrankError(f"{self.folder}/index.csv: a row names no image; mend or remove it")
        files = (name for row in self.rows for name in (row["image"], *self._maps(row)))
        missing = [name for name in files if not (self.folder / "images" / name).is_file()]
        if missing:
            raise SlimrankError(
                f"{self.folder}/images lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
                + " that index.csv names; copy the whole folder"
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
        path = self.folder / name
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SlimrankError(
                f"cannot read {path} ({error}); --concepts takes a folder in Broden's layout, or generated"
            ) from error
        lacking = [c for c in columns if not rows or c not in rows[0]]
        if lacking:
            raise SlimrankError(f"{path} has no column {lacking[0]} or no rows; --concepts takes a folder in Broden's layout")
        return [{key: value or "" for key, value in row.items() if isinstance(value, str | None)} for row in rows]

    def _primary(self, text: str) -> str:
        """The category of "object(8);part(2)" with the highest count."""
        found = re.findall(r"([a-z]+)(?:\((\d+)\))?", text.lower())
        if not found:
            raise SlimrankError(f"{self.folder}/label.csv: no category in {text!r}; it must be one of {', '.join(CATEGORIES)}")
        name = max(found, key=lambda item: int(item[1][:9] or 0))[0]
        name = KNOWN.get(name, name)
        if name not in CATEGORIES:
            raise SlimrankError(f"{self.folder}/label.csv: no category {name!r}; it must be one of {', '.join(CATEGORIES)}")
        return name

    def _count(self, text: str, file: str, what: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise SlimrankError(f"{self.folder}/{file}: {what} must be a whole number, not {text[:20]!r}; mend it")
        return int(text)

    def _items(self, row: dict[str, str]) -> Iterator[str]:
        for column in self.columns:
            yield from (item for item in row[column].split(";") if item)

    def _maps(self, row: dict[str, str]) -> Iterator[str]:
        return (item for item in self._items(row) if not item.isdecimal())

    def pixels(self, i: int, preprocessing: Preprocessing) -> Tensor:
        """Image i as the network sees it: the whole picture, scaled to a square; uint8 [channels, size, size]."""
        picture = self._open(self.rows[i]["image"]).convert("L" if len(preprocessing.mean) == 1 else "RGB")
        array = np.asarray(picture.resize((preprocessing.size,) * 2, Image.Resampling.BILINEAR))
        return torch.from_numpy((array[None] if array.ndim == 2 else array.transpose(2, 0, 1)).copy())

    def annotation(self, i: int) -> tuple[Tensor, Tensor]:
        """The concepts in image i, positions in `names`, and where: bool [concepts, sh, sw]."""
        row = self.rows[i]
        masks: dict[int, np.ndarray] = {}
        for item in self._items(row):
            for number, mask in self._labels(item):
                if number not in self.place:
                    raise SlimrankError(f"{self.folder}: {item} of {row['image']} holds label {number}, which label.csv lacks")
                at = self.place[number]
                masks[at] = masks[at] | mask if at in masks else mask
        found = sorted(masks)
        stacked = np.stack([masks[c] for c in found]) if found else np.zeros((0, *self.shape), bool)
        return torch.tensor(found, dtype=torch.long), torch.from_numpy(stacked)

    def _labels(self, item: str) -> Iterator[tuple[int, np.ndarray]]:
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
        try:
            with Image.open(path) as opened:
                opened.load()
                return opened
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise SlimrankError(f"{path} cannot be read as an image ({error}); mend or remove it") from error


# -- a generated set ---------------------------------------------------------------------------------------------------

COLORS = {
    "red": (200, 40, 40), "green": (50, 150, 60), "blue": (50, 80, 200), "yellow": (230, 210, 60), "cyan": (70, 200, 210),
    "magenta": (200, 70, 190), "orange": (235, 140, 40), "brown": (120, 80, 45), "white": (240, 240, 240),
    "grey": (130, 130, 130), "black": (25, 25, 25),
}  # fmt: skip
TEXTURES = ("striped", "banded", "diagonal", "checkered", "dotted", "grid", "zigzag", "waves", "concentric", "speckled")
SHAPES = (
    "disc", "square", "triangle", "ring", "cross", "star", "diamond", "crescent", "semicircle", "bar", "hexagon", "frame",
)  # fmt: skip
SCENES = ("dark", "bright", "left-lit", "right-lit")
PARTS = ("rim", "core")


def generate(folder: str | Path, images: int = 1000, size: int = 112, seed: int = 0) -> Path:
    """Write `images` pictures of shapes, colours and textures with their pixel labels, in Broden's layout: 61 concepts."""
    if images < 1 or size < 16:
        raise SlimrankError(f"{images} images of {size} pixels; generate at least 1 of at least 16 pixels")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [("color", n) for n in COLORS] + [("texture", n) for n in TEXTURES] + [("object", n) for n in SHAPES]
    names += [("part", f"{shape} {part}") for shape in SHAPES for part in PARTS] + [("scene", n) for n in SCENES]
    number = {both: i + 1 for i, both in enumerate(names)}
    random = np.random.default_rng(seed)
    rows = [_picture(folder / "images", f"{i:06}", size, random, number) for i in range(images)]
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "ih", "iw", "sh", "sw", *CATEGORIES])
        writer.writerows([[f"{i:06}.png", "train", size, size, size, size, *row] for i, row in enumerate(rows)])
    with open(folder / "label.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "name", "category", "frequency", "coverage", "syns"])
        writer.writerows([[i, name, f"{category}({images})", images, 0, ""] for (category, name), i in number.items()])
    return folder


def _picture(folder: Path, name: str, size: int, random: np.random.Generator, number: dict) -> list[str]:
    """Draw one; returns the cells of its categories."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    maps = {category: np.zeros((size, size), np.int32) for category in ("color", "texture", "object", "part")}
    rgb = np.zeros((size, size, 3))

    def fill(where: np.ndarray, color: str, texture: str | None) -> None:
        tone = np.array(COLORS[color], float)
        shade = np.ones((size, size)) if texture is None else 1 - 0.55 * _texture(texture, x, y, random)
        rgb[where] = (tone * shade[..., None])[where]
        maps["color"][where] = number["color", color]
        maps["texture"][where] = 0 if texture is None else number["texture", texture]

    colors, textures = list(COLORS), list(TEXTURES)
    ground = str(random.choice(colors))
    fill(np.ones((size, size), bool), ground, str(random.choice(textures)) if random.random() < 0.4 else None)
    for _ in range(random.integers(1, 4)):
        shape = str(random.choice(SHAPES))
        radius, angle = random.uniform(0.14, 0.3), random.uniform(0, 2 * np.pi)
        cx, cy = random.uniform(radius, 1 - radius, 2)
        u, v = (x - cx) / radius, (y - cy) / radius
        u, v = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        inside = _shape(shape, u, v)
        color = str(random.choice([c for c in colors if c != ground]))
        fill(inside, color, str(random.choice(textures)) if random.random() < 0.4 else None)
        maps["object"][inside] = number["object", shape]
        core = _shape(shape, 1.35 * u, 1.35 * v) & inside
        maps["part"][inside] = number["part", f"{shape} rim"]
        maps["part"][core] = number["part", f"{shape} core"]
    scene = str(random.choice(SCENES))
    light = {"dark": 0.55, "bright": 1.1, "left-lit": 1.15 - 0.6 * x, "right-lit": 0.55 + 0.6 * x}[scene]
    rgb = rgb * np.broadcast_to(np.asarray(light), (size, size))[..., None] + random.normal(0, 6, (size, size, 1))
    Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    cells = dict.fromkeys(CATEGORIES, "")
    for category, labels in maps.items():
        if labels.any():
            stored = np.stack([labels % 256, labels // 256, np.zeros_like(labels)], 2).astype(np.uint8)
            Image.fromarray(stored).save(folder / f"{name}_{category}.png")
            cells[category] = f"{name}_{category}.png"
    cells["scene"] = str(number["scene", scene])
    return [cells[category] for category in CATEGORIES]


def _shape(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where a shape of about unit radius covers the plane."""
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    side = np.maximum(abs(u), abs(v))
    return {
        "disc": r < 1, "square": side < 0.8, "ring": (r < 1) & (r > 0.55), "frame": (side < 0.85) & (side > 0.5),
        "triangle": (v < 0.6) & (v > -1 + 1.8 * abs(u)), "diamond": abs(u) + 0.7 * abs(v) < 0.8,
        "cross": (side < 0.95) & (np.minimum(abs(u), abs(v)) < 0.28), "star": r < 0.62 + 0.36 * np.cos(5 * theta),
        "crescent": (r < 1) & (np.hypot(u - 0.45, v) > 0.75), "semicircle": (r < 1) & (v > 0),
        "bar": (abs(u) < 1) & (abs(v) < 0.28),
        "hexagon": np.maximum(abs(u), 0.5 * abs(u) + 0.866 * abs(v)) < 0.85,
    }[name]  # fmt: skip


def _texture(name: str, x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A pattern of zeros and ones (speckles in between) over the unit square."""
    f = 2 * np.pi * random.uniform(9, 13)
    a, b = np.sin(f * x), np.sin(f * y)
    return {
        "striped": a > 0, "banded": b > 0, "diagonal": np.sin(0.7 * f * (x + y)) > 0, "checkered": a * b > 0,
        "dotted": np.maximum(a, -1) * np.maximum(b, -1) * (a > 0) * (b > 0) > 0.35, "grid": np.maximum(a, b) > 0.8,
        "zigzag": np.sin(f * (y + 0.25 * abs((8 * x) % 2 - 1))) > 0, "waves": np.sin(f * (y + 0.03 * np.sin(f * x))) > 0,
        "concentric": np.sin(f * np.hypot(x - 0.5, y - 0.5)) > 0, "speckled": random.random(x.shape) > 0.5,
    }[name].astype(float)  # fmt: skip
