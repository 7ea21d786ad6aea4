"""Write a checkpoint as ONNX and compare the file with PyTorch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...evaluate.data import Data
from ...evaluate.runner import Runner
from ...export.half import TOLERANCE, halved
from ...export.mixed import Int8, check_enough, mixed
from ...export.parity import Parity, parity
from ...export.to_onnx import export as to_onnx
from ...export.to_onnx import replacing, size
from ..network.checkpoint import Checkpoint
from .options import ExportOptions

RANDOM_INPUTS = 64
CALIBRATION_IMAGES = 128  # that int8 takes its ranges from
JUDGED_IMAGES = 1000


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file beside the network that it was made of. `int8`: what int8 came to, where it was asked for.

    `validation_seen`: whether training saw the images that int8 was judged on.
    """

    path: Path
    bytes: int
    parity: Parity
    int8: Int8 | None = None
    validation_seen: bool | None = False

    def to_dict(self) -> dict[str, Any]:
        found = {"path": str(self.path), "bytes": self.bytes, **self.parity.to_dict(), "says": str(self.parity)}
        if self.int8 is not None:
            found |= {"int8": self.int8.to_dict(), "validation_seen_in_training": self.validation_seen}
        return found

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.path}: {self.bytes:,} bytes", str(self.parity), *([] if self.int8 is None else [str(self.int8)])]
        )


def export(
    checkpoint: Checkpoint, path: str | Path, data: Data | None = None, options: ExportOptions | None = None, *, seed: int = 0
) -> Exported:
    """Write the ONNX file; parity is measured on the test split, or on random inputs, labelled so, without data.

    Nothing is written, and an older file stays, where the float file differs from the network by more than `tolerance`, or the
    float16 one by a tenth: then raises SlimrankError. With `int8` the float file is written only where int8 does not pay.
    """
    options = (options or ExportOptions()).check(data is not None)
    if data is not None:
        checkpoint = checkpoint.with_classes(data)
    int8: Int8 | None = None
    seen: bool | None = False
    if options.int8 and data is not None:
        check_enough(data.split("train"))
        seen = checkpoint.validation_seen(data) if data.classes else False
    with replacing(path) as fresh:
        to_onnx(checkpoint.model, checkpoint.example(), fresh, onnx_metadata(checkpoint), opset=options.opset)
        found = compared(checkpoint, fresh, data, seed=seed).check(options.tolerance)
        if options.fp16:
            halved(fresh, fresh)
            found = compared(checkpoint, fresh, data, seed=seed).check(max(options.tolerance, TOLERANCE))
        if options.int8 and data is not None:
            int8 = quantised(fresh, data, options, seed)
            found = compared(checkpoint, fresh, data, seed=seed) if int8.taken else found
    return Exported(path=Path(path), bytes=size(path), parity=found, int8=int8, validation_seen=seen)


def quantised(path: Path, data: Data, options: ExportOptions, seed: int) -> Int8:
    """Put an int8 file in the place of a float one where that pays; calibrated on training images, judged on validation."""
    calibration = data.split("train").sample(CALIBRATION_IMAGES, seed)
    judged = data.split("validation").sample(JUDGED_IMAGES, seed)
    return mixed(path, path, calibration, judged, options.clock, options.max_drop)


def onnx_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the ONNX file carries: enough for `evaluate MODEL.onnx`."""
    return {
        "slimrank": __version__,
        "model": checkpoint.name,
        "preprocessing": asdict(checkpoint.preprocessing),
        "classes": checkpoint.classes,
        "history": checkpoint.history,
    }


def compared(checkpoint: Checkpoint, path: Path, data: Data | None, *, seed: int = 0) -> Parity:
    """Compare a file with its checkpoint on the test split, or on random inputs where there is no data."""
    if data is not None:
        return parity(checkpoint.model, Runner(path), data.split("test").batches(), "test images")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(RANDOM_INPUTS, *checkpoint.preprocessing.shape, generator=generator)
    return parity(checkpoint.model, Runner(path), [(inputs, None)], "random inputs")
