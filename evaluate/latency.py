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
from torch import Tensor
from tqdm import tqdm

from ..errors import SlimrankError, near

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SWAP = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


class Runner:
    """An ONNX file ready to run: images (float32, [batch, channels, height, width]) in, logits out.

    `threads`: of one operator; None takes all cores. Raises SlimrankError for a file that ONNX Runtime cannot load, a
    provider that is not there, and where ONNX Runtime quietly falls back to another one.
    """

    def __init__(self, path: str | Path, provider: str = "cpu", threads: int | None = None):
        wanted = check_provider(provider)
        if Path(path).suffix == ".safetensors":
            raise SlimrankError(f"{path} is a checkpoint, not an ONNX file; `slimrank export` makes one of it")
        if not Path(path).is_file():
            raise SlimrankError(f"no ONNX file at {path}; check the path")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count() or 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = str(error).strip().splitlines()[0][:200]
            raise SlimrankError(f"ONNX Runtime cannot load {path}: {reason}; export it again") from error
        actual = self.session.get_providers()[0]
        if actual != wanted:
            raise SlimrankError(
                f"ONNX Runtime fell back to {actual} instead of {wanted}: its CUDA libraries did not load; "
                "check the driver and the CUDA version of onnxruntime-gpu"
            )
        self.path = str(path)
        self.input = self.session.get_inputs()[0]

    def __call__(self, images: Tensor) -> Tensor:
        try:
            logits = self.session.run(None, {self.input.name: images.numpy()})[0]
        except Exception as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise SlimrankError(f"{self.path} does not run on images of {list(images.shape)}: {reason}") from error
        return torch.from_numpy(logits)

    def example(self, batch: int) -> np.ndarray:
        """Random images, float32 [batch, ...]; raises SlimrankError for a file that leaves more than the batch open."""
        shape = self.input.shape[1:]
        if not all(isinstance(side, int) for side in shape):
            raise SlimrankError(f"{self.path} leaves its input open ({self.input.shape}); export it with a fixed image size")
        return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def check_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider (cpu, cuda); raises SlimrankError where this machine does not have it."""
    if provider not in PROVIDERS:
        raise SlimrankError(f"no provider {provider!r}; {near(provider, list(PROVIDERS))}")
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise SlimrankError(f"this onnxruntime has no {wanted}; on a machine with an NVIDIA GPU: {SWAP}")
    return wanted


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
    """Timings of several models in one run; `speedups`: of each other model against the first, setting by setting."""

    results: list[Latency]
    speedups: list[Speedup]
    machine: Machine

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
        return "\n".join(rows)


def compare(
    models: Mapping[str, str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    seconds: float = 1.0,
) -> Comparison:
    """Time named ONNX files against each other; each setting takes about `seconds` a model, at least 15 runs.

    Raises SlimrankError for a provider that is not there, and where ONNX Runtime would quietly fall back.
    """
    check_settings(providers, batches, threads)
    if not 0 < seconds < 3600:
        raise SlimrankError(f"`seconds` is {seconds}, must be positive")
    results: list[Latency] = []
    settings = [(p, t, b) for p in providers for t in threads for b in batches]
    for provider, thread, batch in tqdm(settings, desc="latency", leave=False, disable=None):
        runners = {name: Runner(path, provider, thread) for name, path in models.items()}
        feeds = {name: {r.input.name: r.example(batch)} for name, r in runners.items()}
        times = interleaved({name: _call(r.session, feeds[name]) for name, r in runners.items()}, seconds)
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
    return Comparison(results, speedups, machine())


def _call(session: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> Callable[[], object]:
    """A call that runs the session once, inputs and outputs bound: ONNX Runtime's time without Python's in `session.run`."""
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: (session.run_with_iobinding(binding), feed)[0]


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
