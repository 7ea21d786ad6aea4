"""Which layers int8 pays for: ranges by agreement, then groups of layers back to float by clock and by agreement.

Everything is decided on images that calibrated nothing. Groups are bisected: a group that costs nothing is left at once.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SlimrankError
from ..evaluate.data import Images
from ..evaluate.kernels import by_weight, profile
from ..evaluate.latency import Speedup, compare
from ..evaluate.runner import Runner
from ..evaluate.timing import Timing
from ..files import Scratch
from .calibration import BATCH, Ranges, calibrate
from .int8 import OPS, FloatFile
from .to_onnx import replacing, size

COSTLY = 0.01  # of the decisions: a layer that loses as many stays float,
SURE = 3.0  # where they are so many standard errors
MOST = 40  # files that are judged before groups are taken whole
JUDGED = 50  # images at once
AT_ONCE = 4  # while every tensor of the network is kept
SLOWER = 1.05  # times a layer's float time by the profile: worth a run
FASTER = 1.02  # times the speed of the whole file: no noise


@dataclass(frozen=True)
class Judged:
    """A file beside the float one: share of equal decisions, top-1 (None without labels), and the mean squared difference
    of the logits over their variance."""

    equal: Tensor  # bool [images]
    top1: float | None
    error: float

    @property
    def agreement(self) -> float:
        return _share(self.equal)

    def to_dict(self) -> dict[str, float | None]:
        return {"agreement": self.agreement, "top1": self.top1, "error": self.error}


class Judge:
    """Judges files by what the float file decides on images."""

    def __init__(self, path: Path, images: Images):
        self.images = images
        self.logits = self._run(path)
        self.float = self._judged(self.logits)

    def __call__(self, path: Path) -> Judged:
        return self._judged(self._run(path))

    def _judged(self, logits: Tensor) -> Judged:
        chosen = logits.argmax(1)
        return Judged(
            equal=chosen == self.logits.argmax(1),
            top1=_share(chosen == self.images.labels) if self.images.labelled else None,
            error=float((logits - self.logits).square().mean() / self.logits.var().clamp_min(1e-30)),
        )  # fmt: skip

    def lost(self, judged: Judged) -> float:
        """Top-1 that a file has lost; without labels, the share of decisions that it has changed."""
        if judged.top1 is None or self.float.top1 is None:
            return 1 - judged.agreement
        return self.float.top1 - judged.top1

    def _run(self, path: Path) -> Tensor:
        runner = Runner(path)
        return torch.cat([runner(images) for images, _ in self.images.batches(JUDGED)])


@dataclass(frozen=True)
class FloatLayer:
    """A layer left float. `by` clock: its milliseconds in either kind; by agreement: the share of decisions that it regains;
    by max_drop: what it and the others `by` max_drop regain together, in top-1 or, without labels, agreement."""

    layer: str
    by: str
    float_ms: float
    int8_ms: float
    regained: float | None = None

    def __str__(self) -> str:
        if self.regained is None:
            return f"{self.layer} ({self.float_ms:.3f} ms, in int8 {self.int8_ms:.3f})"
        together = " with the others" if self.by == "max_drop" else ""
        return f"{self.layer} ({self.by}: {100 * self.regained:+.1f} points{together})"


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What int8 came to on `images` images.

    `methods`: agreement of the whole network in int8 by calibration. `before`: the float file, `after`: the one with
    `floats` left float, `speedups` of this, a row a batch size. `taken`: it was written, else the float file was.
    """

    taken: bool
    method: str
    methods: dict[str, float]
    layers: int
    floats: list[FloatLayer] = field(default_factory=list)
    images: int
    calibration_images: int
    before: Judged
    after: Judged
    speedups: list[Speedup] = field(default_factory=list)
    bytes_float: int
    bytes: int
    seven_bits: bool
    says: str = ""

    def to_dict(self) -> dict[str, Any]:
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        rows = {"floats": [asdict(layer) for layer in self.floats], "speedups": [row.to_dict() for row in self.speedups]}
        return {**plain, **rows, "before": self.before.to_dict(), "after": self.after.to_dict()}

    def __str__(self) -> str:
        left = f"\nfloat: {', '.join(map(str, self.floats))}" if self.floats else ""
        return f"{self.says}{left}"


def mixed(
    path: Path, out: Path, calibration: Images, judged: Images, timing: Timing, max_drop: float | None = None
) -> Int8:  # fmt: skip
    """Write the float file `path` to `out` with the layers in int8 that pay; nothing is written where int8 does not.

    `calibration`: images that give the ranges; `judged`: others, that decide. `max_drop`: top-1 that may be lost on these,
    or the share of decisions that may change without labels (None: 0.01, 0.05). Raises SlimrankError as FloatFile does, and
    for fewer than BATCH images to calibrate on.
    """
    check_enough(calibration)
    allowed = (0.01 if judged.labelled else 0.05) if max_drop is None else max_drop
    file, judge = FloatFile(path), Judge(path, judged)
    ranges = calibrate(path, (images for images, _ in calibration.batches(AT_ONCE)), OPS)
    with Scratch() as folder:
        search = _Search(file, judge, timing, Path(folder), ranges)
        found = search.run(allowed)
        whole = {method: judged.agreement for method, judged in search.whole.items()}
        result = Int8(
            taken=False, method=search.method, methods=whole, layers=len(search.file.layers), floats=found, images=len(judged),
            calibration_images=len(calibration), before=judge.float, after=search.judged(names(found)),
            bytes_float=size(path), bytes=0, seven_bits=search.file.kernels.seven_bits,
        )  # fmt: skip
        if len(found) == result.layers:
            return replace(result, says=f"int8 left out: {_all(found)}; the float file is written")
        written = search.written(names(found))
        speedups = search.speedups(written)
        result = replace(result, speedups=speedups, bytes=size(written))
        shown = ", ".join(f"{str(row).strip()} at batch {row.batch}" for row in speedups)
        if _mean(speedups) < 1:
            return replace(result, says=f"int8 left out: at its best it is slower here, {shown}; the float file is written")
        with replacing(out) as fresh:
            search.file.write(fresh, search.ranges[search.method], names(found))
    return replace(result, taken=True, says=_says(result, shown))


def check_enough(calibration: Images) -> None:
    """Raise SlimrankError for fewer than BATCH images to calibrate on."""
    if len(calibration) < BATCH:
        raise SlimrankError(
            f"int8 is calibrated on at least {BATCH} training images, there are {len(calibration)}; raise `limit` or add images"
        )


def _all(floats: list[FloatLayer]) -> str:
    """Why no layer is int8."""
    kinds = {one.by for one in floats}
    return "every layer is slower in it" if kinds == {"clock"} else "no layer is both faster and accurate enough in it"


def _says(found: Int8, shown: str) -> str:
    top1 = "" if found.after.top1 is None else f", top-1 {found.before.top1:.4f} -> {found.after.top1:.4f}"
    return (
        f"int8 in {found.layers - len(found.floats)} of {found.layers} layers ({found.method} ranges of "
        f"{found.calibration_images} images): {shown}, {found.bytes / found.bytes_float:.1%} of the bytes; decides as float on "
        f"{found.after.agreement:.1%} of {found.images:,} validation images{top1}"
    )


@dataclass
class _Search:
    """One search on its way. `ranges` by method; files that were written and judged are kept by what is float in them."""

    file: FloatFile
    judge: Judge
    timing: Timing
    folder: Path
    ranges: dict[str, Ranges]
    method: str = ""
    whole: dict[str, Judged] = field(default_factory=dict)
    known: dict[frozenset[str], Judged] = field(default_factory=dict)

    def run(self, allowed: float) -> list[FloatLayer]:
        """The layers that stay float, in the network's order."""
        for method in self.ranges:
            self.method = method
            self.whole[method] = self.judge(self.written(()))
        self.method = max(self.whole, key=lambda name: (self.whole[name].agreement, -self.whole[name].error))
        self.known[frozenset()] = self.whole[self.method]
        times = self.times()
        found = {name: FloatLayer(name, "clock", *times[name]) for name in self.slower(times)}
        left = [name for name in self.file.layers if name not in found]
        for name, regained in self.costly(left, frozenset(found)).items():
            found[name] = FloatLayer(name, "agreement", *times[name], regained)
        before, kept = self.judge.lost(self.judged(found)), frozenset(found)
        left = sorted((name for name in left if name not in found), key=lambda name: times[name][0] - times[name][1])
        more = self.needed(kept, left, lambda floats: self.judge.lost(self.judged(floats)) <= allowed + 1e-9)
        regained = before - self.judge.lost(self.judged(kept | set(more))) if more else 0.0
        found |= {name: FloatLayer(name, "max_drop", *times[name], regained) for name in more}
        return [found[name] for name in self.file.layers if name in found]

    def written(self, floats: Collection[str]) -> Path:
        if len(floats) == len(self.file.layers):
            return self.file.path
        return self.file.write(self.folder / "int8.onnx", self.ranges[self.method], floats)

    def judged(self, floats: Iterable[str]) -> Judged:
        key = frozenset(floats)
        if key not in self.known:
            self.known[key] = self.judge(self.written(key))
        return self.known[key]

    @property
    def exhausted(self) -> bool:
        return len(self.known) >= MOST

    def speedups(self, path: Path, against: Path | None = None) -> list[Speedup]:
        """Of a file over the float one, or another, a row a batch size."""
        return compare(
            {"float": against or self.file.path, "int8": path}, batches=self.timing.batch, threads=self.timing.threads[:1]
        ).speedups

    def times(self) -> dict[str, tuple[float, float]]:
        """Milliseconds of each layer, float and int8, with what runs before the next one; mean over the batch sizes."""
        whole, found = self.written(()), dict.fromkeys(self.file.layers, (0.0, 0.0))
        for batch in self.timing.batch:
            both = [by_weight(profile(p, batch=batch, threads=self.timing.threads[0])) for p in (self.file.path, whole)]
            for layer in found:
                taken = [one.get(f"{layer}.weight", one.get(layer, 0.0)) / len(self.timing.batch) for one in both]
                found[layer] = (found[layer][0] + taken[0], found[layer][1] + taken[1])
        return found

    def slower(self, times: dict[str, tuple[float, float]]) -> list[str]:
        """Layers that the profile shows slower in int8, and whose return to float makes the whole file faster."""
        whole = self.folder / "whole.onnx"
        self.written(()).replace(whole)

        def faster(group: list[str]) -> list[str]:
            if not group or len(group) == len(times):
                return group
            if _surely_faster(self.speedups(self.written(group), whole)):
                return group
            half = len(group) // 2
            return [*faster(group[:half]), *faster(group[half:])] if half else []

        found = faster([name for name, (in_float, in_int8) in times.items() if in_int8 > SLOWER * in_float])
        return found if found and _surely_faster(self.speedups(self.written(found), whole)) else []

    def costly(self, group: list[str], floats: frozenset[str]) -> dict[str, float]:
        """Layers of a group that regain COSTLY of the decisions each; a group that regains less is not looked into."""
        if not group:
            return {}
        before, after = self.judged(floats), self.judged(floats | set(group))
        regained = after.agreement - before.agreement
        if regained < max(COSTLY, SURE * standard_error(before.equal, after.equal)):
            return {}
        if len(group) == 1 or self.exhausted:
            return dict.fromkeys(group, regained)
        half = len(group) // 2
        return self.costly(group[:half], floats) | self.costly(group[half:], floats)

    def needed(
        self, floats: frozenset[str], group: list[str], holds: Callable[[frozenset[str]], bool], changed: bool = True
    ) -> list[str]:  # fmt: skip
        """A smallest part of `group` that makes `floats` hold, early ones preferred (QuickXplain, Junker, AAAI 2004)."""
        if not group or (changed and holds(floats)):
            return []
        if len(group) == 1 or self.exhausted:
            return group
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        later = self.needed(floats | set(first), second, holds)
        earlier = self.needed(floats | set(later), first, holds, bool(later))
        return [*earlier, *later]


def standard_error(before: Tensor, after: Tensor) -> float:
    """Of the difference of two shares of the same images: only those count that are in one of them."""
    return math.sqrt(int((before != after).sum())) / len(before)


def names(layers: Iterable[FloatLayer]) -> list[str]:
    return [one.layer for one in layers]


def _mean(speedups: list[Speedup]) -> float:
    return math.prod(row.speedup for row in speedups) ** (1 / len(speedups))


def _surely_faster(speedups: list[Speedup]) -> bool:
    return _mean(speedups) >= FASTER and all(row.low is None or row.low > 1 for row in speedups)


def _share(equal: Tensor) -> float:
    return int(equal.sum()) / len(equal)
