"""float16 for GPUs: half the bytes, by ONNX Runtime's converter."""

import warnings
from pathlib import Path

import onnx

from .calibration import quiet, refusing
from .to_onnx import replacing

TOLERANCE = 0.1  # of the logits' spread: ten bits of each value, through many layers


def halved(path: Path, out: Path) -> Path:
    """Write a float32 file in float16; it still reads float32 images and gives float32 logits."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # a second to import

    with quiet(), refusing("convert", "fp16"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights below the least float16, which become it
        model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    with replacing(out) as fresh:
        onnx.save(model, fresh)
    return out
