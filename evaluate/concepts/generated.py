"""A generated set of images with pixel-wise concepts, in Broden's layout: shapes, parts, colours, textures, light."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import SlimrankError
from .broden import CATEGORIES

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
    """Write `images` pictures of `size` x `size` pixels with their pixel labels, 61 concepts; returns `folder`."""
    if images < 1 or size < 16:
        raise SlimrankError(f"{images} images of {size} pixels; generate at least 1 of at least 16 pixels")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    concepts = [("color", n) for n in COLORS] + [("texture", n) for n in TEXTURES] + [("object", n) for n in SHAPES]
    concepts += [("part", f"{shape} {part}") for shape in SHAPES for part in PARTS] + [("scene", n) for n in SCENES]
    number = {concept: i + 1 for i, concept in enumerate(concepts)}
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


def _picture(folder: Path, name: str, size: int, random: np.random.Generator, number: dict[tuple[str, str], int]) -> list[str]:
    """Draw and write a picture and its label maps; returns its cells of index.csv, one a category.

    `number`: the label of each (category, concept).
    """
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
    """Where a shape of about unit radius, centred on the origin, covers the plane: bool, as `u` and `v`."""
    r, theta = np.hypot(u, v), np.arctan2(v, u)
    side = np.maximum(abs(u), abs(v))
    shapes: dict[str, np.ndarray] = {
        "disc": r < 1, "square": side < 0.8, "ring": (r < 1) & (r > 0.55), "frame": (side < 0.85) & (side > 0.5),
        "triangle": (v < 0.6) & (v > -1 + 1.8 * abs(u)), "diamond": abs(u) + 0.7 * abs(v) < 0.8,
        "cross": (side < 0.95) & (np.minimum(abs(u), abs(v)) < 0.28), "star": r < 0.62 + 0.36 * np.cos(5 * theta),
        "crescent": (r < 1) & (np.hypot(u - 0.45, v) > 0.75), "semicircle": (r < 1) & (v > 0),
        "bar": (abs(u) < 1) & (abs(v) < 0.28),
        "hexagon": np.maximum(abs(u), 0.5 * abs(u) + 0.866 * abs(v)) < 0.85,
    }  # fmt: skip
    return shapes[name]


def _texture(name: str, x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A pattern of zeros and ones (speckles in between) over the unit square."""
    f = 2 * np.pi * random.uniform(9, 13)
    a, b = np.sin(f * x), np.sin(f * y)
    patterns: dict[str, np.ndarray] = {
        "striped": a > 0, "banded": b > 0, "diagonal": np.sin(0.7 * f * (x + y)) > 0, "checkered": a * b > 0,
        "dotted": np.maximum(a, -1) * np.maximum(b, -1) * (a > 0) * (b > 0) > 0.35, "grid": np.maximum(a, b) > 0.8,
        "zigzag": np.sin(f * (y + 0.25 * abs((8 * x) % 2 - 1))) > 0, "waves": np.sin(f * (y + 0.03 * np.sin(f * x))) > 0,
        "concentric": np.sin(f * np.hypot(x - 0.5, y - 0.5)) > 0, "speckled": random.random(x.shape) > 0.5,
    }  # fmt: skip
    return patterns[name].astype(float)
