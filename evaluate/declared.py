"""What an ONNX file asks for before it is loaded: ONNX Runtime allocates whatever a graph declares, in part while loading."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf import message

from ..errors import SlimrankError

LARGEST = 2**30  # bytes of one tensor, where axes that are open count as one
FOLLOWED = 10**5  # numbers of a tensor whose values are followed
GROWS = ("ConstantOfShape", "Expand", "Range", "Tile", "Concat")  # operators that make many integers out of few
# what onnx and protobuf raise for a file that is none
UNREADABLE = (
    OSError, ValueError, TypeError, RuntimeError, message.Error,
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
)  # fmt: skip
SMALL = 1024  # numbers of a constant whose values may decide a shape


def check_declared(path: str | Path) -> None:
    """Raise SlimrankError where a tensor of an ONNX file, constant or computed, would be larger than LARGEST bytes, and than
    the file with what lies beside it.

    Shapes are those that ONNX infers, with the values that decide a shape unless those may be many. A file that cannot be read
    or inferred is left to ONNX Runtime, which says why.
    """
    if not Path(path).is_file():
        return
    try:
        model = onnx.load(path, load_external_data=False)
        held = max(LARGEST, *_sizes(Path(path), model.graph))
        sparse = [(tensor.values.name, tensor.dims, tensor.values.data_type) for tensor in model.graph.sparse_initializer]
        _without_weights(model.graph)
    except UNREADABLE:
        return
    inferred = _inferred(model, values=False)
    _refuse_large(path, [*sparse, *_tensors(inferred)], held)
    if not _many_values(inferred):
        _refuse_large(path, _tensors(_inferred(model, values=True)), held)


def _inferred(model: onnx.ModelProto, values: bool) -> onnx.GraphProto:
    """The graph with the shapes that ONNX infers, following `values` that decide one; empty where it cannot."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=values).graph
    except UNREADABLE:
        return onnx.GraphProto()


def _many_values(graph: onnx.GraphProto) -> bool:
    """Whether ONNX might follow the values of large integer tensors: it keeps them one by one, in a hundred bytes each."""
    known = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
    for name in (name for node in graph.node if node.op_type in GROWS for name in node.output):
        if name not in known or known[name].elem_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
            sides = [dim.dim_value for dim in known[name].shape.dim] if name in known else [0]
            if not 0 < math.prod(sides) <= FOLLOWED:
                return True
    return False


def _refuse_large(path: str | Path, tensors: Iterable[tuple[str, Sequence[int], int]], held: int) -> None:
    for name, dims, kind in tensors:
        if (size := math.prod(dims) * _bytes(kind)) > held:
            raise SlimrankError(
                f"{path} makes {name or 'a tensor'}, {' x '.join(map(str, dims))} numbers ({size:,} bytes); {held:,} bytes "
                "are the limit: export it for smaller images or a smaller batch"
            )


def _without_weights(graph: onnx.GraphProto) -> None:
    """Declare large constants as inputs: their values decide no shape, and are copied on the way."""
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > SMALL]
    known = {value.name for value in graph.input}
    for tensor in large:
        if tensor.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph.initializer.remove(tensor)


def _sizes(path: Path, graph: onnx.GraphProto) -> Iterator[int]:
    """Bytes of the file, and of each that keeps weights beside it."""
    yield path.stat().st_size
    named = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    yield from ((path.parent / name).stat().st_size for name in named if (path.parent / name).is_file())


def _tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, list[int], int]]:
    """Name, sides and type of every tensor whose shape is known, in branches and loop bodies too."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(body)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            kind = value.type.tensor_type
            yield value.name, [max(1, dim.dim_value) for dim in kind.shape.dim], kind.elem_type


def _bytes(kind: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):  # an unknown type is for ONNX Runtime to refuse
        return 4
