"""One run of `compress` as its report.json tells it: what pages show of it, checked. Files may be anybody's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ...errors import SlimrankError
from ...files import read_json

Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(gt=0, lt=1e9)]
Count = Annotated[int, Meta(ge=1, le=10**18)]
FLOAT = "compressed, float"  # in the latency table, where the compressed file is in int8
Setting = tuple[str, int, int]  # provider, threads, batch


class Timed(Struct, frozen=True):
    """A row of the latency table."""

    model: str
    provider: str
    batch: Count
    threads: Count
    median_ms: Milliseconds
    p10_ms: Milliseconds
    p90_ms: Milliseconds
    p95_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None

    @property
    def tail(self) -> str:
        """Of its slowest runs, in words; empty where they were not told."""
        return "" if self.p95_ms is None or self.p99_ms is None else f"p95 {self.p95_ms:.3f}, p99 {self.p99_ms:.3f} ms"

    @property
    def setting(self) -> Setting:
        return self.provider, self.threads, self.batch


class Speedup(Struct, frozen=True):
    """How many times as fast as the baseline, and the interval of that where it was measured."""

    model: str
    provider: str
    batch: Count
    threads: Count
    speedup: Annotated[float, Meta(gt=0, lt=1e9)]
    low: float | None = None
    high: float | None = None

    @property
    def setting(self) -> Setting:
        return self.provider, self.threads, self.batch


class Machine(Struct, frozen=True):
    processor: str
    cores: int | None
    onnxruntime: str
    torch: str
    python: str
    isa: list[str] | None = None


class Side(Struct, frozen=True):
    """The network before (`baseline`) or after."""

    macs: Count
    flops: Count
    params: Count
    bytes: Count
    top1: Share | None
    agreement: Share | None = None


class Rival(Struct, frozen=True):
    name: str
    model: str
    macs: Count
    top1: Share | None = None
    agreement: Share | None = None
    bytes: Count | None = None


class Rank(Struct, frozen=True):
    ranker: str
    scores: dict[str, list[float]]


class Accuracy(Struct, frozen=True):
    top1: Share | None
    agreement: Share | None = None


class Repaired(Struct, frozen=True):
    as_cut: Accuracy
    recalibrated: Accuracy | None
    reconstructed: Accuracy | None
    images: Count
    note: str = ""


class Prune(Struct, frozen=True):
    budget: dict[str, float]
    keep: dict[str, list[int]]
    widths: dict[str, tuple[Count, Count]]
    repair: Repaired | None = None


class Head(Struct, frozen=True):
    indices: list[list[int]]
    k2: int
    select: str
    fit: str
    head_macs_before: int
    head_macs_after: int
    top1_dense: Share | None = None
    top1_head: Share | None = None


class Specialize(Struct, frozen=True):
    says: str
    result: Head | None = None


class FloatFile(Struct, frozen=True):
    """The float file beside one in int8."""

    bytes: Count
    top1: Share | None = None
    agreement: Share | None = None


class Int8(Struct, frozen=True):
    taken: bool
    says: str
    float: FloatFile


class Export(Struct, frozen=True):
    int8: Int8 | None = None


class Rivals(Struct, frozen=True):
    rows: list[Rival] = []


class Bench(Struct, frozen=True):
    results: list[Timed]
    speedups: list[Speedup] = []
    remarks: str = ""


class Done(Struct, frozen=True):
    """What every stage says."""

    name: str
    seconds: float
    says: str


class Report(Struct, frozen=True):
    model: str
    baseline: Side
    compressed: Side
    stages: list[dict[str, Any]]
    options: dict[str, Any]
    machine: Machine
    slimrank: str
    seconds: float
    test_images: Count | None
    validation_seen_in_training: bool | None = None
    classes: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """`name`: the folder, as it was given; empty for a run that is just being written."""

    name: str
    report: Report
    rank: Rank
    prune: Prune
    rivals: list[Rival]
    specialize: Specialize | None
    int8: Int8 | None
    bench: Bench
    done: list[Done]

    @cached_property
    def times(self) -> dict[tuple[str, Setting], Timed]:
        return {(row.model, row.setting): row for row in self.bench.results}

    def speedup(self, model: str, at: Setting) -> Speedup:
        """How many times as fast as the baseline, as measured from pairs of runs; in older reports the ratio of medians."""
        ratio = self.times["baseline", at].median_ms / self.times[model, at].median_ms
        return self._told.get((model, at), Speedup(model, at[0], at[2], at[1], ratio))

    @cached_property
    def _told(self) -> dict[tuple[str, Setting], Speedup]:
        return {(row.model, row.setting): row for row in self.bench.speedups}

    @property
    def settings(self) -> list[Setting]:
        """What was timed, the smallest first."""
        return sorted({row.setting for row in self.bench.results if row.model == "baseline"})

    @property
    def labelled(self) -> bool:
        return self.report.baseline.top1 is not None

    @property
    def tested_on(self) -> tuple[Any, ...]:
        """What decides which images are the test images; accuracies on others are not to be compared."""
        options = self.report.options
        validation = str(options.get("validation"))
        drawn = validation.startswith("test") or options.get("limit") is not None
        decides = (validation if validation.startswith("test") else None, options.get("limit"), options.get("seed"))
        return (str(options.get("data")), self.report.test_images, self.labelled, *(map(str, decides) if drawn else ()))

    @property
    def images(self) -> str:
        """The test images in words."""
        n, data = self.report.test_images, self.report.options.get("data")
        return "no images" if n is None else f"{n:,} {'' if self.labelled else 'unlabelled '}test images of {data}"


def run_of(report: Mapping[str, Any], name: str = "") -> Run:
    """What pages show of a report. Raises msgspec.ValidationError where it is none that this version reads."""
    whole = msgspec.convert(report, Report)
    stages = {str(stage.get("name")): stage for stage in whole.stages}
    missing = [stage for stage in ("rank", "prune", "bench") if stage not in stages]
    if missing:
        raise msgspec.ValidationError(f"Object missing the stage `{missing[0]}` - at `$.stages`")
    run = Run(
        name=name, report=whole, rank=msgspec.convert(stages["rank"], Rank), prune=msgspec.convert(stages["prune"], Prune),
        rivals=msgspec.convert(stages.get("rivals", {}), Rivals).rows,
        specialize=msgspec.convert(stages["specialize"], Specialize) if "specialize" in stages else None,
        int8=msgspec.convert(stages.get("export", {}), Export).int8,
        bench=msgspec.convert(stages["bench"], Bench), done=msgspec.convert(whole.stages, list[Done]),
    )  # fmt: skip
    floats = (FLOAT,) if run.int8 is not None and run.int8.taken else ()
    for model in ("compressed", *floats, *(rival.model for rival in run.rivals)):
        if not run.settings or any((model, setting) not in run.times for setting in run.settings):
            raise msgspec.ValidationError(f"times of {model!r} are missing - at `$.stages[...].results`")
    return run


def read_run(folder: Path) -> Run:
    """The run in a folder of `compress`. Raises SlimrankError where there is none, or one that has not come to its end."""
    anew = "let `slimrank compress` write it anew"
    if not folder.is_dir():
        raise SlimrankError(f"{folder} is no folder; name folders that `slimrank compress` wrote")
    path, state = folder / "report.json", folder / "state.json"
    rows = read_json(state, "the state in", anew).get("stages") if state.exists() else None
    reached = [str(row.get("name")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not path.exists() and not reached:
        raise SlimrankError(f"{folder} has no report.json; name folders that `slimrank compress` wrote")
    raw = read_json(path, "report", anew) if path.exists() else {}
    try:
        if path.exists() and (not reached or len(reached) >= len(raw.get("stages", []))):
            return run_of(raw, str(folder))
    except (msgspec.ValidationError, TypeError) as error:
        of = f"slimrank {raw['slimrank']}" if isinstance(raw.get("slimrank"), str) else "no version of slimrank"
        raise SlimrankError(f"report {path}, of {of}, is none that this version reads ({error}); {anew}") from error
    raise SlimrankError(f"the run in {folder} is half finished, {reached[-1]} is its last stage; run it again to go on")
