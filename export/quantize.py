"""Weights of fewer bits for an ONNX file, by ONNX Runtime: int8, activations quantised as they come, or int4 in blocks."""

import logging
from pathlib import Path

import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from ..files import whole


def quantized(path: str | Path, out: str | Path) -> Path:
    """Write the ONNX file `path` to `out` with its matrix products in int8 (one scale a column); convs stay float32."""
    model = onnx.load(path)
    del model.graph.value_info[:]  # the quantiser transposes weights, and their noted shapes would no longer hold
    kinds = ["MatMul", "Gemm"]
    logging.disable(logging.WARNING)  # it recommends a preprocessing that does nothing for matrix products
    try:
        with whole(Path(out)) as temporary:
            quantize_dynamic(model, str(temporary), weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=kinds)
    finally:
        logging.disable(logging.NOTSET)
    return Path(out)


def quantized_int4(path: str | Path, out: str | Path) -> Path:
    """Write the ONNX file of one linear layer to `out` with its weight in int4, a scale for 32 features of a class.

    The product is MatMulNBits, which computes in int8 (accuracy level 4). The bias is added after it.
    """
    model = onnx.load(path)
    _gemm_as_matmul(model.graph)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4)
    logging.disable(logging.WARNING)
    try:
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
        with whole(Path(out)) as temporary:
            onnx.save(quantizer.model.model, temporary)
    finally:
        logging.disable(logging.NOTSET)
    return Path(out)


def _gemm_as_matmul(graph: onnx.GraphProto) -> None:
    """Write each Gemm of a transposed constant weight as MatMul and Add, the form that is quantised."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for place, node in enumerate(list(graph.node)):
        if node.op_type != "Gemm":
            continue
        x, name, *bias = node.input
        if any(entry.name == "transB" and entry.i for entry in node.attribute):
            turned = numpy_helper.from_array(numpy_helper.to_array(weights[name]).T.copy(), name)
            weights[name].CopyFrom(turned)
        product = f"{node.output[0]}_product" if bias else node.output[0]
        graph.node.remove(node)
        graph.node.insert(place, helper.make_node("MatMul", [x, name], [product]))
        if bias:
            graph.node.insert(place + 1, helper.make_node("Add", [product, *bias], [node.output[0]]))
