"""int8 by ONNX Runtime's static quantisation: QuantizeLinear and DequantizeLinear about each layer, weights per channel."""

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType
from torch import Tensor

from ..errors import SlimrankError
from .calibration import Ranges, observed, quiet, refusing
from .to_onnx import ONE_FILE, beside

WEIGHTED = ("Conv", "Gemm", "MatMul")
CARRIED = (  # between layers, computed on int8 as well
    "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Split",
    "Slice", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
)  # fmt: skip
OPS = (*WEIGHTED, *CARRIED)
QUANTISED = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger")


@dataclass(frozen=True)
class Kernels:
    """What this machine's int8 kernels want: `signed` activations (ARM); weights of seven bits where products would overflow
    (x86 without VNNI)."""

    signed: bool
    seven_bits: bool


@dataclass(frozen=True)
class FloatFile:
    """A float32 ONNX file of ours that is to be quantised."""

    path: Path

    def __post_init__(self) -> None:
        found = sum(node.op_type in QUANTISED for node in self.model.graph.node)
        if found:
            raise SlimrankError(f"this network quantises itself already ({found} such operators); leave out `int8`")
        if not self.layers:
            raise SlimrankError("no layer of this network has weights that int8 can hold; leave out `int8`")

    @cached_property
    def model(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    @cached_property
    def kernels(self) -> Kernels:
        return machine_kernels()

    @cached_property
    def layers(self) -> dict[str, tuple[str, ...]]:
        """Layers that can be int8, in order: name to its nodes, those that follow it up to the next layer among them.

        A layer is a convolution or a product with a constant matrix, named after its weight. Other products (tiles of a
        class-specific head, attention) and what no int8 kernel computes stay float; so does what comes after these where no
        layer follows: a head that is none.
        """
        weights = {tensor.name: len(tensor.dims) for tensor in self.model.graph.initializer}
        found: dict[str, list[str]] = {}
        first: list[str] = []
        current = first
        carried = _carried(self.model.graph, weights)
        for node in self.model.graph.node:
            if _is_layer(node, weights):
                current = found.setdefault(node.input[1].removesuffix(".weight"), [])
            if node.name in carried:
                current.append(node.name)
        if found:
            next(iter(found.values())).extend(first)
        return {name: tuple(nodes) for name, nodes in found.items()}

    def write(self, out: Path, ranges: Ranges, floats: Collection[str] = ()) -> Path:
        """Write the file with its layers in int8 but those in `floats`. Raises SlimrankError where the quantiser refuses."""
        kind = QuantType.QInt8 if self.kernels.signed else QuantType.QUInt8
        nodes = [node for name, group in self.layers.items() if name not in floats for node in group]
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        with quiet(), refusing("quantise"):
            quantizer = QDQQuantizer(
                model, True, self.kernels.seven_bits, QuantType.QInt8, kind, ranges, nodes, [], list(OPS),
                {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},  # logits keep their digits
            )  # fmt: skip
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # as ONNX demands; ONNX Runtime alone reads it in any order
        written: onnx.ModelProto = quantizer.model.model
        _tidy(written, self.model)
        external: dict[str, Any] = {}
        if written.ByteSize() >= ONE_FILE:
            external = {"save_as_external_data": True, "location": beside(out).name}
        onnx.save(written, out, **external)
        return out


def _is_layer(node: onnx.NodeProto, weights: Mapping[str, int]) -> bool:
    """Whether a node multiplies by a constant weight that an int8 kernel takes. `weights`: initializers' dimensions."""
    if node.op_type not in WEIGHTED:
        return False
    sides = weights.get(node.input[1], 0)
    return sides == 2 or (node.op_type == "Conv" and sides > 2)


def _carried(graph: onnx.GraphProto, weights: Mapping[str, int]) -> set[str]:
    """Names of the layers, and of the nodes between them that are computed on int8."""
    layers = {node.name for node in graph.node if _is_layer(node, weights)}
    live = {entry.name for entry in graph.input}  # tensors that depend on the images
    able = set(layers)
    for node in graph.node:
        if live.intersection(node.input):
            live.update(node.output)
            able |= {node.name} if node.op_type in CARRIED else set()
    behind: set[str] = set()  # tensors after a float node, no layer between
    for node in graph.node:
        if node.name not in layers and (node.name not in able or behind.intersection(node.input)):
            behind.update(node.output)
    leading: set[str] = set()  # tensors that a layer reads, at first or second hand
    for node in reversed(graph.node):
        if node.name in layers or leading.intersection(node.output):
            leading.update(node.input)
    between = {node.name for node in graph.node if leading.intersection(node.output) or not behind.intersection(node.input)}
    return layers | (able & between)


def int8_to_time(path: Path, out: Path, images: Tensor) -> Path:
    """Write a float file in int8, all of it, for its time alone: ranges are those of a few images."""
    file = FloatFile(path)
    return file.write(out, observed(path, images, OPS))


def machine_kernels() -> Kernels:
    """By ONNX Runtime's advice for each kind of processor; one that is not known is taken to lack VNNI."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return Kernels(signed=True, seven_bits=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    return Kernels(signed=False, seven_bits=not ("avx512_vnni" in flags or "avx_vnni" in flags))


def _tidy(written: onnx.ModelProto, given: onnx.ModelProto) -> None:
    """Metadata of the given file alone, and the shapes that the quantiser noted dropped."""
    del written.graph.value_info[:]
    del written.metadata_props[:]
    written.metadata_props.extend(given.metadata_props)
