"""Where the time of an ONNX file goes: ONNX Runtime's own profile, kernel by kernel, each attributed to its weight."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from ..errors import SlimrankError

WEIGHTED = ("Conv", "Gemm", "MatMul")
FUSED = ("_nchwc", "_bn")  # what ONNX Runtime appends to the name of the tensor that a fused kernel makes


@dataclass(frozen=True)
class Kernel:
    """Median milliseconds of one kernel; `weight`: name of the initializer it multiplies by, None for one without."""

    name: str
    op: str
    median_ms: float
    weight: str | None


def profile(path: str | Path, *, batch: int = 1, threads: int = 1, seconds: float = 0.5) -> list[Kernel]:
    """Time the kernels of an ONNX file, in order of execution, on the CPU provider and random images.

    Runs for about `seconds`, 8 to 200 times. Raises SlimrankError where ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class
            reason = str(error).strip().splitlines()[0][:200]
            raise SlimrankError(f"ONNX Runtime cannot load {path}: {reason}; export it again") from error
        entry = session.get_inputs()[0]
        images = np.random.default_rng(0).standard_normal((batch, *entry.shape[1:]), dtype=np.float32)
        start = time.perf_counter()
        runs = 0
        while runs < 8 or (runs < 200 and time.perf_counter() - start < seconds):
            session.run(None, {entry.name: images})
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name].append(event["dur"] / 1e3)
            ops[name] = event["args"]["op_name"]
    weights = _weights(path)
    return [
        Kernel(name, ops[name], float(np.median(ms[2:])), weights(name) if _weighted(ops[name]) else None)
        for name, ms in taken.items()
    ]


def _weighted(op: str) -> bool:
    return any(kind in op for kind in WEIGHTED)


def _weights(path: str | Path) -> Callable[[str], str | None]:
    """A function from a kernel's name to the initializer that its conv or matrix product reads."""
    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    producer = {output: node for node in graph.node for output in node.output}
    named = {node.name: node for node in graph.node if node.name}

    def weight(name: str) -> str | None:
        name = name.removeprefix("fused ")
        for suffix in FUSED:
            name = name.removesuffix(suffix)
        node = producer.get(name) or named.get(name.split("_token_")[0])
        while node is not None and node.op_type not in WEIGHTED:  # the kernel is named after what was fused last
            node = producer.get(node.input[0]) if node.input else None
        return None if node is None else next((i for i in node.input[1:] if i in constants), None)

    return weight


def matrices(path: str | Path, names: set[str]) -> dict[str, np.ndarray]:
    """Read two-dimensional initializers by name (the exporter renames those that it has transposed)."""
    if not names:
        return {}
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name in names and len(t.dims) == 2}
