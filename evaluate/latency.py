"""Latency of ONNX files in ONNX Runtime, measured in one interleaved run so that models can be compared.

All models of a setting (provider, batch, threads) are loaded at once and run in turn, A B A B ..., after a warm-up: whatever
else the machine does slows all of them alike. Worker threads stop spinning when a run ends, so that one model's threads do not
occupy another's cores. On a GPU the time includes copying images in and logits out.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from ..errors import SlimrankError
from .runner import Runner, check_provider


def check_settings(providers: Sequence[str], batches: Sequence[int], threads: Sequence[int]) -> None:
    """Raise SlimrankError for settings that cannot be timed on this machine."""
    if min(batches) < 1 or min(threads) < 1:
        raise SlimrankError(f"`batch` {list(batches)} and `threads` {list(threads)} must be at least 1")
    for provider in providers:
        check_provider(provider)


@dataclass(frozen=True)
class Latency:
    """Milliseconds a run of `batch` images: median, 10th and 90th percentile over `runs` runs."""

    model: str
    provider: str
    batch: int
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Speedup:
    """Median time of the model `against` over that of `model` at one setting: above 1, `model` is faster."""

    model: str
    against: str
    provider: str
    batch: int
    threads: int
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """The processor and the versions that timings belong to."""

    processor: str
    cores: int | None
    onnxruntime: str
    torch: str
    python: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Timings of several models in one run; `speedups`: of each other model against the first, setting by setting.

    `note`: why other batch sizes were timed than those that were asked for.
    """

    results: list[Latency]
    speedups: list[Speedup]
    machine: Machine
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"  {'model':28} provider batch threads   median ms      p10      p90  speedup"]
        speedups = {(s.model, s.provider, s.batch, s.threads): s.speedup for s in self.speedups}
        for r in self.results:
            speedup = speedups.get((r.model, r.provider, r.batch, r.threads))
            shown = "" if speedup is None else f"{speedup:8.2f}x"
            rows.append(
                f"  {r.model:28} {r.provider:8} {r.batch:5} {r.threads:7} {r.median_ms:11.3f} {r.p10_ms:8.3f} "
                f"{r.p90_ms:8.3f} {shown}"
            )
        return "\n".join([*rows, *([f"  {self.note}"] if self.note else [])])


def compare(
    models: Mapping[str, str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
) -> Comparison:
    """Time named ONNX files against each other; each setting takes about `seconds` a model, at least 15 runs.

    Where a file takes one batch size only, all are timed at that one. Raises SlimrankError for files that take different
    ones, for a provider that is not there, and where ONNX Runtime would quietly fall back.
    """
    check_settings(providers, batches, threads)
    if not 0 < seconds < 3600:
        raise SlimrankError(f"`seconds` is {seconds}, must be positive")
    batches, note = _possible(models, batches)
    results: list[Latency] = []
    settings = [(p, t, b) for p in providers for t in threads for b in batches]
    for provider, thread, batch in tqdm(settings, desc="latency", leave=False, disable=None):
        runners = {name: Runner(path, provider, thread) for name, path in models.items()}
        times = interleaved({name: r.bound(batch) for name, r in runners.items()}, seconds)
        for name, taken in times.items():
            p10, median, p90 = np.percentile(taken, [10, 50, 90]) * 1e3
            results.append(Latency(name, provider, batch, thread, float(median), float(p10), float(p90), len(taken)))
    first = next(iter(models))
    base = {(r.provider, r.batch, r.threads): r.median_ms for r in results if r.model == first}
    speedups = [
        Speedup(r.model, first, r.provider, r.batch, r.threads, base[r.provider, r.batch, r.threads] / r.median_ms)
        for r in results
        if r.model != first
    ]
    return Comparison(results, speedups, machine(), note)


def _possible(models: Mapping[str, str | Path], batches: Sequence[int]) -> tuple[Sequence[int], str]:
    """The batch sizes that all files take: those asked for, or the one that some file is fixed to, and then a note."""
    fixed = {name: batch for name, path in models.items() if (batch := Runner(path).batch) is not None}
    if not fixed or set(batches) == set(fixed.values()):
        return batches, ""
    told = ", ".join(f"{name} takes a batch of {batch}" for name, batch in fixed.items())
    if len(set(fixed.values())) > 1:
        raise SlimrankError(f"these files cannot be compared: {told}; export them with the same batch, or a dynamic one")
    return tuple(set(fixed.values())), f"timed at no other batch size: {told} and no other"


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Time calls in turn, in seconds: three warm-up rounds, then about `seconds` for each, 15 to 2,000 rounds."""
    warm = time.perf_counter()
    for _ in range(3):
        for call in calls.values():
            call()
    round_seconds = (time.perf_counter() - warm) / 3
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(int(min(2000, max(15, seconds * len(calls) / round_seconds)))):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def machine() -> Machine:
    """This machine; the processor's name where the system tells it."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    return Machine(processor, os.cpu_count(), onnxruntime.__version__, str(torch.__version__), platform.python_version())
