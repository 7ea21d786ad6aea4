"""The session options that run a file fastest on this machine: threads, spinning, optimisation level.

Settings are timed one after another, for spinning threads of one session would slow the next one down, and in turns, so that
what else the machine does meets all of them.
"""

import os
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .imagespec import Side
from .latency import Feed
from .ratio import ratio
from .runner import Runner
from .session import LEVELS, Tuning

TURNS = 5  # sessions of each setting
RUNS = (3, 200)  # of each session


@dataclass(frozen=True)
class Setting:
    threads: int
    optimisation: str
    spinning: str

    @property
    def tuning(self) -> Tuning:
        return Tuning(self.optimisation, self.spinning)


@dataclass(frozen=True)
class Tried:
    """A setting, its median milliseconds, and how much faster than ONNX Runtime's defaults it is, with the 99 % interval."""

    setting: Setting
    median_ms: float
    speedup: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self.setting),
            "median_ms": self.median_ms,
            "speedup": self.speedup,
            "low": self.low,
            "high": self.high,
        }

    def __str__(self) -> str:
        one = self.setting
        within = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{one.threads:7}  {one.optimisation:12} {one.spinning:8} {self.median_ms:10.3f} {self.speedup:8.2f}x{within}"


@dataclass(frozen=True)
class Tuned:
    """Every setting tried for a file, and the best: the defaults, unless one is faster with its whole interval."""

    model: str
    provider: str
    batch: int
    tried: list[Tried]
    best: Tried
    code: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model, "provider": self.provider, "batch": self.batch, "best": self.best.to_dict(),
            "tried": [one.to_dict() for one in self.tried], "code": self.code,
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [f"  {self.model}, {self.provider}, batch {self.batch}: settings, the first is ONNX Runtime's own"]
        rows += ["  threads  optimisation spinning  median ms  speedup (99 %)", *(f"  {one}" for one in self.tried)]
        same = self.best.setting == self.tried[0].setting
        rows += ["  none is faster for certain; the defaults, written out:" if same else "  the fastest:", "", self.code]
        return "\n".join(rows)


def best_settings(
    model: str, path: str | Path, *, provider: str = "cpu", batch: int = 1, seconds: float = 1.0, size: Side | None = None,
    feed: Feed = Runner.example,
) -> Tuned:  # fmt: skip
    """Search one option after another, keeping the best so far: threads, then spinning, then the optimisation level.

    Each setting takes about `seconds`, and the best is timed once more against the defaults.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    default = best = Setting(cores, "all", "always")

    def raced(settings: list[Setting]) -> dict[Setting, list[list[float]]]:
        return _race(path, provider, batch, list(dict.fromkeys(settings)), seconds, size, feed)

    counts = sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})
    seen: dict[Setting, Tried] = {}
    for options in (
        [{"threads": count} for count in counts],
        [{"spinning": "always"}, {"spinning": "never"}],
        [{"optimisation": level} for level in LEVELS],
    ):
        settings = [replace(best, **change) for change in options]
        if all(setting.threads == 1 for setting in settings) and "spinning" in options[0]:
            continue  # no worker threads that could spin
        times = raced([default, *settings])
        for setting, sessions in times.items():
            found = ratio(times[default], sessions)
            median = float(np.median(np.concatenate(sessions))) * 1e3
            seen.setdefault(setting, Tried(setting, median, found.value, found.low, found.high))
        best = min(times, key=lambda setting: float(np.median(np.concatenate(times[setting]))))
    tried = [seen[default], *(one for setting, one in seen.items() if setting != default)]
    chosen = _sure(tried[0], best, raced([default, best])) if best != default else tried[0]
    code = chosen.setting.tuning.code(path, provider, chosen.setting.threads)
    return Tuned(model, provider, batch, [*tried], chosen, code)


def _sure(default: Tried, best: Setting, times: dict[Setting, list[list[float]]]) -> Tried:
    """The best setting as it stands against the defaults in times of their own, if its whole interval is above 1."""
    found = ratio(times[default.setting], times[best])
    median = float(np.median(np.concatenate(times[best]))) * 1e3
    sure = found.low is not None and found.low > 1
    return Tried(best, median, found.value, found.low, found.high) if sure else default


def _race(
    path: str | Path, provider: str, batch: int, settings: list[Setting], seconds: float, size: Side | None, feed: Feed
) -> dict[Setting, list[list[float]]]:
    """Seconds of every run of each session of each setting; as many of each, so that they can be paired."""
    times: dict[Setting, list[list[float]]] = {setting: [] for setting in settings}
    shuffled, runs = random.Random(0), 0
    for _ in range(TURNS):
        for setting in shuffled.sample(settings, len(settings)):
            runner = Runner(path, provider, setting.threads, size=size, tuning=setting.tuning)
            call = runner.bound(batch, feed(runner, batch))
            call()
            if not runs:
                start = time.perf_counter()
                call()
                least, most = RUNS
                runs = int(min(most, max(least, seconds / TURNS / (time.perf_counter() - start))))
            taken = []
            for _ in range(runs):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            times[setting].append(taken)
    return times
