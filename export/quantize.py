"""int8 weights for an ONNX file: ONNX Runtime's dynamic quantisation, activations quantised as they come."""

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

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
