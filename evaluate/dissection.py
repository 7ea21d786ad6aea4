"""Network dissection (Bau et al., "Network dissection: quantifying interpretability of deep visual representations", 2017).

T_k: the level that unit k's activation reaches on 0.5 % of all positions of all images, at native resolution. The map is
scaled up (bilinear) to the label maps' size and thresholded there; intersection and union with each concept's pixels add up
over the data set; a unit's label is the concept of the largest IoU, and it detects it if IoU > 0.04.

Union is the plain one, over all images (equation 3 of Varshneya et al.); Bau et al. leave out images that are not annotated
in the concept's category, which gives larger IoUs.

Two choices that the papers leave open. A position belongs to the mask at T_k or above, and where that would take in the
unit's silence (its smallest value) only above: a unit that is a concept's mask then scores 1, however rare the concept.
The baseline beside it: the same masks laid over the next image of the batch, which keeps their sizes, shapes and places.
"""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import SlimrankError
from .concepts import Concepts
from .data import Preprocessing

Run = Callable[[Tensor], dict[str, Tensor]]  # normalised images -> what each layer's units answered, [images, units, h, w]
TOP, DETECTOR, BATCH = 0.005, 0.04, 50


@dataclass(frozen=True)
class Layer:
    """One layer's units. `units[k]`: [concept, category, IoU]; `unique`: distinct labels of detectors, by category.

    `chance`: the same counts for the baseline (module docstring).
    """

    units: list[tuple[str, str, float]] = field(repr=False)
    detectors: int
    unique: int
    by_category: dict[str, int]
    chance: dict[str, float]

    @classmethod
    def of(cls, iou: Tensor, other: Tensor, concepts: Concepts) -> "Layer":
        best, label = iou.max(1)
        units = [
            (concepts.names[c], concepts.category[c], round(value, 4)) if value > 0 else ("none", "none", 0.0)
            for c, value in zip(label.tolist(), best.tolist(), strict=True)
        ]
        found = set(label[best > DETECTOR].tolist())
        by_category: dict[str, int] = {}
        for c in sorted(found):
            by_category[concepts.category[c]] = by_category.get(concepts.category[c], 0) + 1
        random, at = other.max(1)
        chance = {
            "detectors": int((random > DETECTOR).sum()), "unique": len(set(at[random > DETECTOR].tolist())),
            "mean_iou": round(float(random.mean()), 4),
        }  # fmt: skip
        return cls(units, int((best > DETECTOR).sum()), len(found), by_category, chance)


@dataclass(frozen=True)
class Dissection:
    """What every layer's units detect; `unique` is the score of Varshneya et al.: unique detectors, summed over layers."""

    layers: dict[str, Layer]
    concepts: int
    images: int
    seconds: float

    @property
    def unique(self) -> int:
        return sum(layer.unique for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        denominator = "plain union over all images"
        return {**asdict(self), "unique": self.unique, "iou_over": DETECTOR, "top": TOP, "denominator": denominator}

    def __str__(self) -> str:
        lines = [
            f"dissection: {self.images:,} images, {self.concepts} concepts, IoU > {DETECTOR} over the plain union, "
            f"{self.seconds:.0f} s",
            f"  {'layer':32} units  detectors  unique  unique by chance  by category",
        ]
        for name, layer in self.layers.items():
            kinds = ", ".join(f"{n} {category}" for category, n in layer.by_category.items()) or "none"
            lines.append(
                f"  {name:32} {len(layer.units):5} {layer.detectors:10} {layer.unique:7} {layer.chance['unique']:17}  {kinds}"
            )
        return "\n".join([*lines, f"  unique detectors, summed over layers: {self.unique}"])


class Top:
    """The `count` largest values of each unit, [units, count], in one pass: exact quantiles, memory a share of the values."""

    def __init__(self, count: int):
        self.count = count
        self.best = self.least = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """`values`: [units, any number]."""
        least = values.amin(1)
        self.least = least if not self.best.numel() else torch.minimum(self.least, least)
        joined = torch.cat([self.best, values], 1) if self.best.numel() else values
        self.best = joined.topk(min(self.count, joined.shape[1]), 1, sorted=False).values

    def level(self) -> Tensor:
        """A unit's mask is where its activation is at least this: [units]; see the module docstring for silence."""
        level = self.best.amin(1)
        return torch.where(level > self.least, level, torch.nextafter(level, torch.full_like(level, torch.inf)))


def dissect(run: Run, concepts: Concepts, preprocessing: Preprocessing) -> Dissection:
    """Two passes over the images: levels, then overlaps. Memory: a few batches of activations, 0.5 % of all of them for the
    levels, and units x concepts. Raises SlimrankError for fewer than two images and for a layer without maps."""
    began = time.perf_counter()
    if len(concepts) < 2:
        raise SlimrankError(f"--concepts has {len(concepts)} image; dissection needs at least two")
    tops: dict[str, Top] = {}
    for images, _ in _batches(concepts, preprocessing, "levels"):
        for name, maps in run(images).items():
            if maps.dim() != 4:
                raise SlimrankError(f"layer {name} answers with {list(maps.shape)}, not with maps; dissect conv layers")
            if name not in tops:
                tops[name] = Top(max(1, math.ceil(TOP * len(concepts) * maps[0, 0].numel())))
            tops[name].add(maps.transpose(0, 1).flatten(1).float())
    levels = {name: top.level() for name, top in tops.items()}
    counts = {name: Overlap(len(level), len(concepts.names)) for name, level in levels.items()}
    for images, some in _batches(concepts, preprocessing, "overlaps"):
        with ThreadPoolExecutor(4) as pool:
            here = list(pool.map(concepts.annotation, some))
        for name, maps in run(images).items():
            for i, one in enumerate(maps.float()):
                counts[name].add(one, levels[name], here[i], here[(i + 1) % len(here)])
    if not any(bool(count.concept.any()) for count in counts.values()):
        raise SlimrankError(f"{concepts.folder}: no image has a label; check the category columns of index.csv")
    layers = {name: Layer.of(count.iou(), count.chance(), concepts) for name, count in counts.items()}
    return Dissection(layers, len(concepts.names), len(concepts), time.perf_counter() - began)


Annotation = tuple[Tensor, Tensor]  # concepts [n], masks bool [n, sh, sw]


class Overlap:
    """Pixels of each unit's mask, of each concept, and of both at once."""

    def __init__(self, units: int, concepts: int):
        self.unit = torch.zeros(units, dtype=torch.float64)
        self.concept = torch.zeros(concepts, dtype=torch.float64)
        self.both = torch.zeros(units, concepts, dtype=torch.float64)
        self.random = torch.zeros(units, concepts, dtype=torch.float64)

    def add(self, maps: Tensor, level: Tensor, here: Annotation, other: Annotation) -> None:
        """One image: maps [units, h, w], the concepts in it, and those of the image that the baseline lays the masks over."""
        concepts, masks = here
        self.concept[concepts] += masks.sum((1, 2), dtype=torch.float64)
        heard = (maps.amax((1, 2)) >= level).nonzero().flatten()  # between its values a scaled map goes no higher
        if not len(heard):
            return
        maps = maps[heard]
        if maps.shape[1:] != masks.shape[1:]:
            maps = F.interpolate(maps[None], masks.shape[1:], mode="bilinear", align_corners=False)[0]
        mine = (maps >= level[heard, None, None]).flatten(1).float()
        self.unit[heard] += mine.sum(1, dtype=torch.float64)
        for (labels, pixels), into in ((here, self.both), (other, self.random)):
            if len(labels):
                into[heard[:, None], labels] += (mine @ pixels.flatten(1).float().T).double()

    def iou(self) -> Tensor:
        return self.both / (self.unit[:, None] + self.concept - self.both).clamp_min(1)

    def chance(self) -> Tensor:
        return self.random / (self.unit[:, None] + self.concept - self.random).clamp_min(1)


def _batches(concepts: Concepts, preprocessing: Preprocessing, what: str) -> Iterator[tuple[Tensor, range]]:
    """Normalised images and their numbers. The last image never comes alone."""
    ends = [*range(BATCH, len(concepts) - 1, BATCH), len(concepts)]
    for begin, end in tqdm([*zip([0, *ends], ends, strict=False)], desc=what, leave=False, disable=None):
        some = range(begin, end)
        with ThreadPoolExecutor(4) as pool:
            pixels = torch.stack(list(pool.map(lambda i: concepts.pixels(i, preprocessing), some)))
        yield preprocessing.normalise(pixels), some
