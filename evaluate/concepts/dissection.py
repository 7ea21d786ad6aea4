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
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ...errors import SlimrankError
from ..data import Preprocessing
from .broden import Concepts

Run = Callable[[Tensor], dict[str, Tensor]]  # normalised images -> activations of each layer, [images, units, h, w]
Annotation = tuple[Tensor, Tensor]  # of one image: concepts [n], their pixels bool [n, sh, sw]
TOP = 0.005  # share of all positions above a unit's threshold
DETECTOR = 0.04  # IoU over which a unit detects a concept
BATCH = 50


@dataclass(frozen=True)
class LayerDissection:
    """One layer's units. `units[k]`: [concept, category, IoU]; `unique`: distinct concepts detected, also `by_category`.

    `chance`: the same counts for the baseline (module docstring).
    """

    units: list[tuple[str, str, float]] = field(repr=False)
    detectors: int
    unique: int
    by_category: dict[str, int]
    chance: dict[str, float]

    @classmethod
    def of(cls, iou: Tensor, chance_iou: Tensor, concepts: Concepts) -> "LayerDissection":
        """Label each unit with the concept of its largest IoU; `iou` and the baseline's `chance_iou`: [units, concepts]."""
        best, label = iou.max(1)
        units = [
            (concepts.names[c], concepts.category[c], round(value, 4)) if value > 0 else ("none", "none", 0.0)
            for c, value in zip(label.tolist(), best.tolist(), strict=True)
        ]
        detected = set(label[best > DETECTOR].tolist())
        by_category = dict(Counter(concepts.category[c] for c in sorted(detected)))
        chance_best, chance_label = chance_iou.max(1)
        chance = {
            "detectors": int((chance_best > DETECTOR).sum()),
            "unique": len(set(chance_label[chance_best > DETECTOR].tolist())),
            "mean_iou": round(float(chance_best.mean()), 4),
        }
        return cls(units, int((best > DETECTOR).sum()), len(detected), by_category, chance)


@dataclass(frozen=True)
class Dissection:
    """What every layer's units detect; `unique` is the score of Varshneya et al.: unique detectors, summed over layers."""

    layers: dict[str, LayerDissection]
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


class Quantile:
    """The smallest of each unit's `count` largest values, in one pass: exact, and memory only for these values."""

    def __init__(self, count: int):
        self.count = count
        self.largest = self.smallest = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Take in more values, [units, any number]."""
        smallest = values.amin(1)
        self.smallest = torch.minimum(self.smallest, smallest) if self.largest.numel() else smallest
        joined = torch.cat([self.largest, values], 1) if self.largest.numel() else values
        self.largest = joined.topk(min(self.count, joined.shape[1]), 1, sorted=False).values

    def level(self) -> Tensor:
        """The threshold of each unit's mask [units]: at least this much activation; the module docstring tells of silence."""
        level = self.largest.amin(1)
        return torch.where(level > self.smallest, level, torch.nextafter(level, torch.full_like(level, torch.inf)))


def dissect(run: Run, concepts: Concepts, preprocessing: Preprocessing) -> Dissection:
    """Label every unit of the layers that `run` answers with, in two passes over the images: thresholds, then overlaps.

    Memory: a few batches of activations, 0.5 % of all of them for the thresholds, and units x concepts. Raises SlimrankError
    for fewer than two images and for a layer without maps.
    """
    began = time.perf_counter()
    if len(concepts) < 2:
        raise SlimrankError(f"`concepts` has {len(concepts)} image; dissection needs at least two")
    quantiles: dict[str, Quantile] = {}
    for images, _ in _batches(concepts, preprocessing, "levels"):
        for name, maps in run(images).items():
            if maps.dim() != 4:
                raise SlimrankError(f"layer {name} answers with {list(maps.shape)}, not with maps; dissect conv layers")
            if name not in quantiles:
                quantiles[name] = Quantile(max(1, math.ceil(TOP * len(concepts) * maps[0, 0].numel())))
            quantiles[name].add(maps.transpose(0, 1).flatten(1).float())
    levels = {name: quantile.level() for name, quantile in quantiles.items()}
    overlaps = {name: MaskOverlap(len(level), len(concepts.names)) for name, level in levels.items()}
    for images, numbers in _batches(concepts, preprocessing, "overlaps"):
        with ThreadPoolExecutor(4) as pool:
            annotations = list(pool.map(concepts.annotation, numbers))
        for name, maps in run(images).items():
            for i, image_maps in enumerate(maps.float()):
                overlaps[name].add(image_maps, levels[name], annotations[i], annotations[(i + 1) % len(annotations)])
    if not any(bool(overlap.concept.any()) for overlap in overlaps.values()):
        raise SlimrankError(f"{concepts.folder}: no image has a label; check the category columns of index.csv")
    layers = {name: LayerDissection.of(overlap.iou(), overlap.chance(), concepts) for name, overlap in overlaps.items()}
    return Dissection(layers, len(concepts.names), len(concepts), time.perf_counter() - began)


class MaskOverlap:
    """Pixels, summed over images, of each unit's mask, of each concept, of both at once, and of both by chance (`random`)."""

    def __init__(self, units: int, concepts: int):
        self.unit = torch.zeros(units, dtype=torch.float64)
        self.concept = torch.zeros(concepts, dtype=torch.float64)
        self.both = torch.zeros(units, concepts, dtype=torch.float64)
        self.random = torch.zeros(units, concepts, dtype=torch.float64)

    def add(self, maps: Tensor, level: Tensor, here: Annotation, other: Annotation) -> None:
        """Count one image: maps [units, h, w], the concepts in it, and those of the image that the baseline lays masks over."""
        concepts, masks = here
        self.concept[concepts] += masks.sum((1, 2), dtype=torch.float64)
        active = (maps.amax((1, 2)) >= level).nonzero().flatten()  # between its values a scaled map goes no higher
        if not len(active):
            return
        maps = maps[active]
        if maps.shape[1:] != masks.shape[1:]:
            maps = F.interpolate(maps[None], masks.shape[1:], mode="bilinear", align_corners=False)[0]
        unit_masks = (maps >= level[active, None, None]).flatten(1).float()
        self.unit[active] += unit_masks.sum(1, dtype=torch.float64)
        for (labels, pixels), sums in ((here, self.both), (other, self.random)):
            if len(labels):
                sums[active[:, None], labels] += (unit_masks @ pixels.flatten(1).float().T).double()

    def iou(self) -> Tensor:
        """Intersection over union of each unit's mask and each concept, [units, concepts]."""
        return self.both / (self.unit[:, None] + self.concept - self.both).clamp_min(1)

    def chance(self) -> Tensor:
        """The same for masks laid over other images."""
        return self.random / (self.unit[:, None] + self.concept - self.random).clamp_min(1)


def _batches(concepts: Concepts, preprocessing: Preprocessing, what: str) -> Iterator[tuple[Tensor, range]]:
    """Normalised images and their numbers, batch by batch; the last image never comes alone: the baseline needs another."""
    ends = [*range(BATCH, len(concepts) - 1, BATCH), len(concepts)]
    for begin, end in tqdm([*zip([0, *ends], ends, strict=False)], desc=what, leave=False, disable=None):
        numbers = range(begin, end)
        with ThreadPoolExecutor(4) as pool:
            pixels = torch.stack(list(pool.map(lambda i: concepts.pixels(i, preprocessing), numbers)))
        yield preprocessing.normalise(pixels), numbers
