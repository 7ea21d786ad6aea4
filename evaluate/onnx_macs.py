"""Multiply-adds of an ONNX file, operator by operator, by the convention of macs.py: both counts of one network are equal.

Shapes come from ONNX's own shape inference on one image; nothing is run. A formula each for convolutions and matrix products,
in float or in whole numbers; a product with weights that is summed over (the decomposed form of a matrix product) counts as
one. What has no formula, or whose shapes the file leaves open, is listed with the number of times it stands in the file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, inliner, shape_inference

from ..errors import SlimrankError

SMALL = 1024  # elements of a tensor that may say a shape; larger ones need not be carried through shape inference
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One node: shapes of its inputs and outputs (None: an input left out), its attributes."""

    inputs: Sequence[Shape | None]
    output: Shape
    attributes: dict[str, Any]

    def shape(self, place: int) -> Shape:
        found = self.inputs[place]
        if found is None:
            raise KeyError(place)
        return found


def _conv(weight: int) -> Callable[[Operator], int]:
    return lambda op: prod(op.output) * prod(op.shape(weight)[1:])


def _product(op: Operator) -> int:
    """Every element of the output is a sum over the last axis of the first input, the one before it where transposed."""
    rows = op.shape(0)
    turned = op.attributes.get("transA", 0) and len(rows) > 1
    return prod(op.output) * (rows[-2] if turned else rows[-1])


def _einsum(op: Operator) -> int:
    """Every combination of the letters of its equation is one multiply-add."""
    entries = op.attributes["equation"].decode().replace(" ", "").split("->")[0].split(",")
    if len(entries) != 2 or any("." in letters for letters in entries):
        raise KeyError("equation")
    sizes = {
        letter: size for place, letters in enumerate(entries) for letter, size in zip(letters, op.shape(place), strict=True)
    }
    return prod(sizes.values())


FORMULAS: dict[str, Callable[[Operator], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "DeformConv": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": lambda op: prod(op.shape(0)) * prod(op.shape(1)[1:]),
    "Gemm": _product,
    "QGemm": _product,
    "MatMul": _product,
    "FusedMatMul": _product,
    "FusedGemm": _product,
    "MatMulInteger": _product,
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
    "QLinearMatMul": _product,
    "MatMulNBits": lambda op: prod(op.shape(0)[:-1]) * op.attributes["K"] * op.attributes["N"],
    "Einsum": _einsum,
}


@dataclass(frozen=True)
class OnnxMacs:
    """MACs of one image, total and by node; `uncounted`: how many operators have no formula, or no known shapes."""

    macs: int
    nodes: dict[str, int]
    uncounted: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        wide = max([20, *map(len, self.nodes)])
        rows = [f"  {name:{wide}} {macs:14,}" for name, macs in self.nodes.items()]
        note = ", ".join(f"{op} x{n}" for op, n in self.uncounted.items()) or "nothing"
        head = f"  {'node':{wide}} {'MACs':>14}"
        return "\n".join([head, *rows, f"  {'total':{wide}} {self.macs:14,}", f"  not counted: {note}"])


def count_onnx(path: str | Path, sides: Sequence[int] | None = None) -> OnnxMacs:
    """Count one image of an ONNX file; `sides`: its shape, where the file leaves it open.

    Of a file with a fixed batch the mean over that batch. Raises SlimrankError for a file that cannot be read.
    """
    model = _read(path)
    batch = _fix(model.graph, sides)
    shapes = _shapes(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    scaled = {  # what is a product with weights
        node.output[0] for node in model.graph.node if node.op_type == "Mul" and constants & set(node.input)
    }
    nodes: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for node in model.graph.node:
        summed = node.op_type == "ReduceSum" and node.input[0] in scaled
        formula = (lambda op: prod(op.shape(0))) if summed else FORMULAS.get(node.op_type)
        if formula is None:
            uncounted[node.op_type] += node.op_type != "Constant"
            continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        inputs = [shapes.get(name) for name in node.input]
        try:
            macs = formula(Operator(inputs, shapes[node.output[0]] if node.op_type != "MatMulNBits" else (), attributes))
        except (KeyError, IndexError, ValueError):
            uncounted[f"{node.op_type} of unknown shape"] += 1
        else:
            nodes[node.name or node.output[0]] += macs
    each = {name: macs // batch for name, macs in nodes.items()}
    return OnnxMacs(sum(nodes.values()) // batch, each, dict(uncounted.most_common()))


def _read(path: str | Path) -> onnx.ModelProto:
    """The file without its large tensors' values, functions written out."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions differ between versions
        raise SlimrankError(f"{path} is no ONNX file ({type(error).__name__}); export it again") from error
    for tensor in model.graph.initializer:
        if prod(tensor.dims) > SMALL:
            tensor.ClearField("raw_data")
    return inliner.inline_local_functions(model) if model.functions else model


def _fix(graph: onnx.GraphProto, sides: Sequence[int] | None) -> int:
    """Set the open batch to 1 and open sides to those given, wherever their names stand; the batch of the images."""
    constants = {tensor.name for tensor in graph.initializer}
    images = next((one for one in graph.input if one.name not in constants), None)
    if images is None or not images.type.tensor_type.shape.dim:
        return 1
    dims, known = images.type.tensor_type.shape.dim, {}
    for dim, size in zip(dims, (1, *(sides or ())), strict=False):
        if not dim.HasField("dim_value"):
            if dim.dim_param:
                known[dim.dim_param] = size
            dim.dim_value = size
    for value in [*graph.value_info, *graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in known:
                dim.dim_value = known[dim.dim_param]
    return max(1, int(dims[0].dim_value))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of every tensor that is known to the last side; names that are not there are open."""
    try:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a file that ONNX Runtime runs may still be one that shape inference refuses
        graph = model.graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return found | dict(_told([*graph.input, *graph.value_info, *graph.output]))


def _told(values: Iterable[onnx.ValueInfoProto]) -> Iterable[tuple[str, Shape]]:
    for value in values:
        shape = value.type.tensor_type.shape
        ranked = value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
        if ranked and all(dim.HasField("dim_value") for dim in shape.dim):
            yield value.name, tuple(dim.dim_value for dim in shape.dim)
