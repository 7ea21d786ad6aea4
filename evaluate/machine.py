"""The machine that timings belong to, and what else it was doing."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnxruntime

# what decides which kernels ONNX Runtime takes: vector width, and dot products of int8 and bfloat16
ISA = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """The processor and the versions that timings belong to.

    `isa`: those of its instruction sets that decide which kernels ONNX Runtime takes; None where the system does not tell.
    """

    processor: str
    cores: int | None
    onnxruntime: str
    torch: str
    python: str
    system: str = ""
    isa: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        isa = f" ({', '.join(self.isa)})" if self.isa else ""
        return f"{self.processor}{isa}, {self.cores} cores; ONNX Runtime {self.onnxruntime}, {self.system}"


def machine() -> Machine:
    """This machine; the processor's name and instruction sets where the system tells them."""
    told = _told()
    processor = told.get("model name") or platform.processor() or platform.machine()
    flags = told.get("flags") or told.get("Features")
    isa = None if flags is None else tuple(name for name in ISA if name in flags.split())
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = ""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(processor, os.cpu_count(), onnxruntime.__version__, torch, platform.python_version(), system, isa)


def _told() -> dict[str, str]:
    """What /proc/cpuinfo says of the first processor; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


class Watch:
    """How many cores others keep busy from now on: the whole machine's time at work, less that of this process."""

    def __init__(self) -> None:
        self.start = self._now()

    def others(self) -> float | None:
        """Cores, on average since the start; None where the system does not tell."""
        now = self._now()
        if self.start is None or now is None or now[0] - self.start[0] < 0.1:
            return None
        wall, busy, own = (b - a for a, b in zip(self.start, now, strict=True))
        return max(0.0, (busy - own) / wall)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds on the clock, seconds that all cores have worked (or their host has kept from them), our own."""
        try:
            words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, words[:8])
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()
