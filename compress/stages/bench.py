"""ONNX files against each other on this machine: latency, start, memory, MACs, and what was expected of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError
from ...evaluate.dataspec import DataSpec
from ...evaluate.expect import Expectation, Judged, Measured, expectations
from ...evaluate.feeds import fitted, stored
from ...evaluate.imagespec import ImageSpec
from ...evaluate.kernels import Profile, profiled
from ...evaluate.latency import Comparison, Feed, compare
from ...evaluate.onnx_macs import OnnxMacs, count_onnx
from ...evaluate.runner import Runner
from ...evaluate.startup import Start, start
from ...evaluate.tune import Tuned, best_settings
from ...export.to_onnx import size as bytes_of
from .evaluate import seen_by

OF_RESULTS = ("median_ms", "p10_ms", "p90_ms", "p95_ms", "p99_ms", "images_per_second")
OF_STARTS = ("load_seconds", "first_run_seconds", "peak_memory_bytes")
OF_FILES = ("bytes", "macs")
ALSO = {"p50_ms": "median_ms"}  # another word for it


@dataclass(frozen=True)
class File:
    """Bytes of an ONNX file, and multiply-adds of one image; `uncounted`: operators without a formula."""

    model: str
    path: str
    bytes: int
    macs: int
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Bench(Comparison):
    """Timings, and what else a user of the files pays; `expected`: of every model but the first, where there are several."""

    files: list[File] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    expected: list[Judged] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "tuned": [one.to_dict() for one in self.tuned]}

    def __str__(self) -> str:
        wide = max([20, *(len(one.model) for one in self.files)])
        files = [f"  {one.model:{wide}} {one.bytes:14,} {one.macs:16,}" for one in self.files]
        starts = [
            f"  {one.model:{wide}} {one.provider:8} {one.batch:5} {one.threads:7} {1e3 * one.load_seconds:9.1f} "
            f"{1e3 * one.first_run_seconds:13.1f} {one.peak_memory_bytes / 2**20:16.0f}"
            for one in self.starts
        ]
        parts = [
            super().__str__(),
            "\n".join([f"  {'model':{wide}} {'bytes':>14} {'MACs an image':>16}", *files]),
            "\n".join([f"  {'start':{wide}} provider batch threads   load ms  first run ms  peak memory MiB", *starts]),
            *map(str, self.profiles),
            *map(str, self.tuned),
            f"  {self.machine}; optimisation {self.tuning.optimisation}",
        ]
        return "\n\n".join(parts) + "".join(f"\n{one}" for one in self.expected)


def bench(
    models: Mapping[str, str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    images: ImageSpec | None = None,
    inputs: str | Path | None = None,
    data: DataSpec | None = None,
    expect: Sequence[str] = (),
    profile: bool = False,
    tune: bool = False,
) -> Bench:
    """Time named ONNX files against each other, the first being what the others are compared with, and start each once in a
    process of its own at every setting.

    Images are random ones, or those of an .npz file (`inputs`), or the test images of `data` as each file sees them; `images`
    says their size where a file leaves it open. `expect`: see `evaluate.expect`. `profile`: time of every operator, `tune`:
    the best session options, both at the first provider, batch and thread count. Raises SlimrankError for files that are not
    to be timed, and for expectations of what is not measured, before anything is timed.
    """
    images = images or ImageSpec()
    asked = _asked(expect, len(models))
    feed = _feed(inputs, data, images)
    size = images.size
    files = [_file(name, Path(path), images) for name, path in models.items()]
    if inputs is not None or data is not None:
        for path in models.values():  # what does not fit is told before the first is timed
            runner = Runner(path, size=size)
            for batch in batches if runner.batch is None else [runner.batch]:
                feed(runner, batch)
    timed = compare(models, providers=providers, batches=batches, threads=threads, seconds=seconds, size=size, feed=feed)
    starts = []
    for row in timed.results:
        fed = feed(Runner(models[row.model], row.provider, row.threads, size=size), row.batch)
        starts.append(start(row.model, models[row.model], fed, provider=row.provider, threads=row.threads))
    first = timed.results[0]
    how: dict[str, Any] = {"provider": first.provider, "batch": first.batch, "seconds": seconds, "size": size, "feed": feed}
    profiles = [profiled(name, path, threads=first.threads, **how) for name, path in models.items()] if profile else []
    settings = [best_settings(name, path, **how) for name, path in models.items()] if tune else []
    shown = {one.name: getattr(timed, one.name) for one in fields(timed)}
    found = Bench(**shown, files=files, starts=starts, profiles=profiles, tuned=settings)
    return replace(found, expected=[one.judged(_measured(found, one.metric, list(models))) for one in asked])


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """A name for each file: its own, with its folder where two are called alike, numbered where one is given twice."""
    unique = len({path.name for path in paths}) == len(set(paths))
    found: dict[str, Path] = {}
    for path in paths:
        name = path.name if unique else str(path)
        times = sum(other == path for other in found.values())
        found[f"{name} ({times + 1})" if times else name] = path
    return found


def _asked(expect: Sequence[str], models: int) -> list[Expectation]:
    known = (*OF_RESULTS, *ALSO, *OF_STARTS, *OF_FILES, *(("speedup",) if models > 1 else ()))
    elsewhere = dict.fromkeys(("top1", "top5", "agreement"), "is what `slimrank evaluate` measures")
    return expectations(expect, known, {**elsewhere, "speedup": "needs a second file, whose speedup over the first it is"})


def _measured(found: Bench, metric: str, models: Sequence[str]) -> Measured:
    """The figures of a metric: of every model but the one that the others are compared with."""
    metric = ALSO.get(metric, metric)
    rows: Sequence[Any] = found.speedups
    for names, group in ((OF_RESULTS, found.results), (OF_STARTS, found.starts), (OF_FILES, found.files)):
        rows = group if metric in names else rows
    judged = models[1:] or models
    return [(_place(row), getattr(row, metric)) for row in rows if row.model in judged]


def _place(row: Any) -> str:
    return row.model if isinstance(row, File) else f"{row.model}, {row.provider}, batch {row.batch}, {row.threads} threads"


def macs_of(path: Path, images: ImageSpec) -> OnnxMacs:
    """Multiply-adds of one image of an ONNX file, operator by operator; `images`: their size where the file leaves it open."""
    return count_onnx(path, Runner(path, size=images.size).sides())


def _file(name: str, path: Path, images: ImageSpec) -> File:
    counted = macs_of(path, images)
    return File(name, str(path), bytes_of(path), counted.macs, counted.uncounted)


def _feed(inputs: str | Path | None, data: DataSpec | None, images: ImageSpec) -> Feed:
    if inputs is not None and data is not None:
        raise SlimrankError("`inputs` and `data` both say which images are run; give one of them")
    if inputs is not None:
        return stored(Path(inputs))
    if data is None:
        if loose := [name for name in images.given if name != "size"]:
            said = ", ".join(f"`{name}`" for name in loose)
            raise SlimrankError(f"{said} say how images of `data` are seen; add `data`, or leave them out")
        return Runner.example
    taken: dict[tuple[str, int], Any] = {}

    def of_data(runner: Runner, batch: int) -> Any:
        if (runner.path, batch) not in taken:
            pictures = data.open(seen_by(runner, images)).split("test")
            few, _ = next(iter(pictures.subset(torch.arange(min(batch, len(pictures)))).batches(batch)))
            taken[runner.path, batch] = fitted(runner.fed(few), runner, batch, f"`data` {data.data}")
        return taken[runner.path, batch]

    return of_data
