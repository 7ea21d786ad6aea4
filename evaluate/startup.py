"""What a start of an ONNX file costs: seconds to load it, seconds of its first run, and memory, in a process of its own.

That process holds Python, NumPy and ONNX Runtime, no PyTorch: what a program needs that serves the file.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SlimrankError
from .session import PLAIN, Tuning, opened


@dataclass(frozen=True)
class Start:
    """One start; the file lay in the system's cache, for it had been read before.

    `peak_memory_bytes`: the most that the process held resident from its start to the end of its second run;
    `runtime_memory_bytes` of it were held before the file was opened.
    """

    model: str
    provider: str
    batch: int
    threads: int
    load_seconds: float
    first_run_seconds: float
    peak_memory_bytes: int
    runtime_memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def start(
    model: str, path: str | Path, images: np.ndarray, *, provider: str = "cpu", threads: int = 1, tuning: Tuning = PLAIN
) -> Start:
    """Start the file `path`, called `model`, in a new process, on ones of the shape and type of `images`."""
    asked = {
        "path": str(path), "provider": provider, "threads": threads, "tuning": asdict(tuning),
        "shape": images.shape, "kind": images.dtype.name,
    }  # fmt: skip
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    done = subprocess.run([sys.executable, "-m", __name__, json.dumps(asked)], capture_output=True, text=True, env=surroundings)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1][:200]
        raise SlimrankError(f"{path} does not start in a process of its own: {reason}; is there memory for it?")
    return Start(model, provider, len(images), threads, **json.loads(done.stdout))


def main(asked: dict[str, Any]) -> dict[str, float]:
    """Load and run as asked, in this process; what `start` reads."""
    before = peak_memory()
    images = np.ones(asked["shape"], asked["kind"])  # zeros would take no memory before they are written
    began = time.perf_counter()
    session = opened(asked["path"], asked["provider"], asked["threads"], Tuning(**asked["tuning"]))
    loaded = time.perf_counter()
    feed = {session.get_inputs()[0].name: images}
    session.run(None, feed)
    ran = time.perf_counter()
    session.run(None, feed)
    return {
        "load_seconds": loaded - began, "first_run_seconds": ran - loaded, "peak_memory_bytes": peak_memory(),
        "runtime_memory_bytes": before,
    }  # fmt: skip


def peak_memory() -> int:
    """The most bytes that this process has held resident.

    Linux's own count of the process image: what getrusage tells there includes the parent's at the time of the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
