"""Where the time of an ONNX file goes: ONNX Runtime's own profile, kernel by kernel, each attributed to its weight."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..files import Scratch
from .imagespec import Side
from .latency import Feed
from .runner import Runner

WEIGHTED = ("Conv", "Gemm", "MatMul")
SHOWN = 15  # kernels in the printed table
QUANTISED = "_quantized"  # what its quantiser appends to the name of an initializer
FUSED = ("_nchwc", "_bn")  # what ONNX Runtime appends to the name of the tensor that a fused kernel makes


@dataclass(frozen=True)
class Kernel:
    """Median milliseconds of one kernel; `weight`: name of the initializer it multiplies by, None for one without."""

    name: str
    op: str
    median_ms: float
    weight: str | None


@dataclass(frozen=True)
class Operators:
    """Kernels that belong together: how many, median milliseconds of all of them, and their share of the whole file's."""

    op: str
    count: int
    median_ms: float
    share: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one file goes: its kernels and its types of operator, slowest first."""

    model: str
    provider: str
    batch: int
    threads: int
    operators: list[Operators]
    kernels: list[Kernel]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        total = sum(kernel.median_ms for kernel in self.kernels) or 1.0
        wide = max([20, *(len(kernel.name) for kernel in self.kernels[:SHOWN])])
        rows = [f"  {self.model}, {self.provider}, batch {self.batch}, {self.threads} threads: {total:.3f} ms in operators"]
        rows += [f"  {one.op:{wide}} {one.median_ms:9.3f} ms {one.share:6.1%}  {one.count} of them" for one in self.operators]
        rows += ["", f"  slowest {min(SHOWN, len(self.kernels))} of {len(self.kernels)}:"]
        rows += [
            f"  {one.name:{wide}} {one.median_ms:9.3f} ms {one.median_ms / total:6.1%}  {one.op}"
            for one in self.kernels[:SHOWN]
        ]
        return "\n".join(rows)


def profiled(model: str, path: str | Path, *, provider: str, batch: int, threads: int, **how: Any) -> Profile:
    """Profile one file, called `model`, slowest first; `how`: as in `profile`."""
    kernels = profile(path, provider=provider, batch=batch, threads=threads, **how)
    total = sum(kernel.median_ms for kernel in kernels) or 1.0
    by_type: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        by_type[kernel.op].append(kernel.median_ms)
    operators = [Operators(op, len(ms), sum(ms), sum(ms) / total) for op, ms in by_type.items()]
    return Profile(
        model, provider, batch, threads, sorted(operators, key=lambda one: -one.median_ms),
        sorted(kernels, key=lambda one: -one.median_ms),
    )  # fmt: skip


def profile(
    path: str | Path, *, batch: int = 1, threads: int = 1, seconds: float = 0.5, provider: str = "cpu",
    size: Side | None = None, feed: Feed = Runner.example,
) -> list[Kernel]:  # fmt: skip
    """Time the kernels of an ONNX file, in order of execution, on random images or those of `feed`.

    Runs for about `seconds`, 8 to 200 times. Raises SlimrankError where ONNX Runtime cannot load the file.
    """
    with Scratch() as folder:
        runner = Runner(path, provider, threads, size=size, profile=Path(folder) / "profile")
        run = runner.bound(batch, feed(runner, batch))
        start = time.perf_counter()
        runs = 1
        while runs < 8 or (runs < 200 and time.perf_counter() - start < seconds):
            run()
            runs += 1
        events = json.loads(Path(runner.session.end_profiling()).read_text())
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


def by_weight(kernels: list[Kernel]) -> dict[str, float]:
    """Milliseconds of each weight's kernels, with what runs before the next one; what runs first counts to the first."""
    found: dict[str, float] = {}
    weight = next((kernel.weight for kernel in kernels if kernel.weight is not None), "")
    for kernel in kernels:
        weight = kernel.weight or weight
        found[weight] = found.get(weight, 0.0) + kernel.median_ms
    return found


def _weighted(op: str) -> bool:
    return any(kind in op for kind in WEIGHTED)


def _weights(path: str | Path) -> Callable[[str], str | None]:
    """A function from a kernel's name to the initializer that its conv or matrix product reads.

    An int8 weight, which is read through DequantizeLinear, has the name of the float one that it was made of.
    """
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
        return None if node is None else next(filter(None, map(constant, node.input[1:])), None)

    def constant(name: str) -> str | None:
        if name in constants:
            return name
        node = producer.get(name)
        int8 = node is not None and node.op_type == "DequantizeLinear" and node.input[0] in constants
        return node.input[0].removesuffix(QUANTISED) if int8 and node is not None else None

    return weight


def matrices(path: str | Path, names: set[str]) -> dict[str, np.ndarray]:
    """Read two-dimensional initializers by name (the exporter renames those that it has transposed)."""
    if not names:
        return {}
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name in names and len(t.dims) == 2}
