"""Latency of ONNX files in ONNX Runtime, measured in one interleaved run so that models can be compared.

All models of a setting (provider, batch, threads) are loaded at once and run in turn, A B A B ..., after a warm-up: whatever
else the machine does slows all of them alike. They are loaded several times over, every other time in reverse order: from one
session to the next a file runs by up to two hundredths faster or slower, by where its weights lie in memory. Speedups and
their intervals are taken from the pairs of a round (ratio.py). Worker threads stop spinning when a run ends, so that one
model's threads do not occupy another's cores. On a GPU images and logits stay in its memory.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import SlimrankError
from .imagespec import Side
from .machine import Machine, Watch, machine
from .ratio import ratio
from .runner import Runner, check_provider
from .session import PLAIN, PROVIDER_OPTIONS, Tuning

__all__ = ["Comparison", "Feed", "Latency", "Machine", "Speedup", "check_settings", "compare", "interleaved", "machine"]
Feed = Callable[[Runner, int], np.ndarray]  # the images of a batch
Call = Callable[[], object]
SESSIONS = (4, 12)  # at least, for an interval; at most; even, for as many have the models in reverse order
LEAST, MOST = 15, 2000  # rounds


def check_settings(providers: Sequence[str], batches: Sequence[int], threads: Sequence[int]) -> None:
    """Raise SlimrankError for settings that cannot be timed on this machine."""
    if min(batches) < 1 or min(threads) < 1:
        raise SlimrankError(f"`batch` {list(batches)} and `threads` {list(threads)} must be at least 1")
    for provider in providers:
        check_provider(provider)


@dataclass(frozen=True)
class Latency:
    """Milliseconds a run of `batch` images: median and percentiles over `runs` runs; images a second at the median."""

    model: str
    provider: str
    batch: int
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    p95_ms: float
    p99_ms: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Speedup:
    """Time of the model `against` over that of `model` at one setting, the mean of sessions: above 1, `model` is faster.

    `low`, `high`: its 99 % interval over `sessions` sessions of both files.
    """

    model: str
    against: str
    provider: str
    batch: int
    threads: int
    speedup: float
    low: float | None = None
    high: float | None = None
    sessions: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.speedup:7.2f}x" + ("" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})")


@dataclass(frozen=True)
class Comparison:
    """Timings of several models in one run; `speedups`: of each other model against the first, setting by setting.

    `note`: why other batch sizes were timed than those that were asked for. `others_cores`: how many cores other programs
    kept at work meanwhile (None: the system does not tell); `busy`: enough of them to matter.
    """

    results: list[Latency]
    speedups: list[Speedup]
    machine: Machine
    note: str = ""
    tuning: Tuning = PLAIN
    others_cores: float | None = None

    @property
    def busy(self) -> bool:
        return self.others_cores is not None and self.others_cores > max(0.2, 0.1 * (self.machine.cores or 1))

    def to_dict(self) -> dict[str, Any]:
        used = {r.provider: PROVIDER_OPTIONS.get(r.provider, {}) for r in self.results}
        return {**asdict(self), "busy": self.busy, "provider_options": used}

    def __str__(self) -> str:
        wide = max([20, *(len(r.model) for r in self.results)])
        percentiles = "".join(f" {name:>8}" for name in ("p10", "p90", "p95", "p99"))
        rows = [f"  {'model':{wide}} provider batch threads  median ms{percentiles}  images/s  speedup (99 %)"]
        speedups = {(s.model, s.provider, s.batch, s.threads): str(s) for s in self.speedups}
        for r in self.results:
            times = "".join(f" {ms:8.3f}" for ms in (r.p10_ms, r.p90_ms, r.p95_ms, r.p99_ms))
            row = f"  {r.model:{wide}} {r.provider:8} {r.batch:5} {r.threads:7} {r.median_ms:10.3f}{times}"
            speedup = speedups.get((r.model, r.provider, r.batch, r.threads), "")
            rows.append(f"{row} {r.images_per_second:9,.0f} {speedup}".rstrip())
        return "\n".join([*rows, *(f"  {line}" for line in self.remarks())])

    def remarks(self) -> list[str]:
        """What a reader of the table should know."""
        told = [self.note] if self.note else []
        if self.busy:
            told.append(
                f"busy machine: other programs kept {self.others_cores:.1f} of {self.machine.cores} cores at work meanwhile; "
                "single times are longer for it, and the intervals of speedups wider"
            )
        unsure = [s for s in self.speedups if s.low is not None and s.high is not None and s.high / s.low > 1.1]
        if unsure:
            told.append(f"{len(unsure)} of {len(self.speedups)} speedups are uncertain by more than 5 %; give more `seconds`")
        return told


def compare(
    models: Mapping[str, str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
    size: Side | None = None,
    feed: Feed = Runner.example,
    tuning: Tuning = PLAIN,
) -> Comparison:
    """Time named ONNX files against each other; each setting takes about `seconds` a model, at least 15 runs.

    `size`: of images where a file leaves it open; `feed`: the images that are run, random ones unless given.
    Where a file takes one batch size only, all are timed at that one. Raises SlimrankError for files that take different
    ones, for a provider that is not there, and where ONNX Runtime would quietly fall back.
    """
    check_settings(providers, batches, threads)
    if not 0 < seconds < 3600:
        raise SlimrankError(f"`seconds` is {seconds}, must be positive")
    batches, note = _possible(models, batches)
    results: list[Latency] = []
    speedups: list[Speedup] = []
    settings = [(p, t, b) for p in providers for t in threads for b in batches]
    first, watch = next(iter(models)), Watch()
    for provider, thread, batch in tqdm(settings, desc="latency", leave=False, disable=None):

        def opened(name: str, setting: tuple[str, int, int] = (provider, thread, batch)) -> Call:
            runner = Runner(models[name], setting[0], setting[1], size=size, tuning=tuning)
            return runner.bound(setting[2], feed(runner, setting[2]))

        times = _times(list(models), opened, seconds)
        for name, sessions in times.items():
            taken = np.concatenate(sessions) * 1e3
            p10, median, p90, p95, p99 = map(float, np.percentile(taken, [10, 50, 90, 95, 99]))
            results.append(Latency(name, provider, batch, thread, median, p10, p90, len(taken), p95, p99, 1e3 * batch / median))
            if name != first:
                found = ratio(times[first], sessions, turned=True)
                speedups.append(
                    Speedup(name, first, provider, batch, thread, found.value, found.low, found.high, len(sessions))
                )
    return Comparison(results, speedups, machine(), note, tuning, watch.others())


def _times(names: Sequence[str], opened: Callable[[str], Call], seconds: float) -> dict[str, list[list[float]]]:
    """Seconds of every round of each session of each model; loading takes at most half as long again as the runs, or is
    done four times."""
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    total = seconds * len(names)
    sessions = 1
    calls: dict[str, Call] = {}
    while len(times[names[0]]) < sessions:
        calls.clear()  # before the next ones load, which then take turns in the same memory
        start = time.perf_counter()
        turned = len(times[names[0]]) % 2
        calls = {name: opened(name) for name in (reversed(names) if turned else names)}
        if not times[names[0]]:
            for call in calls.values():  # what a session costs before its first round
                call()
            least, most = SESSIONS
            sessions = min(most, max(least, 2 * int(total / 4 / (time.perf_counter() - start))))
        part = interleaved(calls, seconds / sessions, least=-(-LEAST // sessions), most=MOST // sessions, warm_up=2)
        for name in names:
            times[name].append(part[name])
    return times


def _possible(models: Mapping[str, str | Path], batches: Sequence[int]) -> tuple[Sequence[int], str]:
    """The batch sizes that all files take: those asked for, or the one that some file is fixed to, and then a note."""
    fixed = {name: batch for name, path in models.items() if (batch := Runner(path).batch) is not None}
    if not fixed or set(batches) == set(fixed.values()):
        return batches, ""
    told = ", ".join(f"{name} takes a batch of {batch}" for name, batch in fixed.items())
    if len(set(fixed.values())) > 1:
        raise SlimrankError(f"these files cannot be compared: {told}; export them with the same batch, or a dynamic one")
    return tuple(set(fixed.values())), f"timed at no other batch size: {told} and no other"


def interleaved(
    calls: Mapping[str, Call], seconds: float, *, least: int = LEAST, most: int = MOST, warm_up: int = 3
) -> dict[str, list[float]]:
    """Time calls in turn, in seconds: after some rounds of warm-up, about `seconds` for each, `least` to `most` rounds."""
    warm = time.perf_counter()
    for _ in range(warm_up):
        for call in calls.values():
            call()
    round_seconds = (time.perf_counter() - warm) / warm_up
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(int(min(most, max(least, seconds * len(calls) / round_seconds)))):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times
