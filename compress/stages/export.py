"""Write a checkpoint as ONNX and compare the file with PyTorch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...evaluate.data import Data
from ...evaluate.runner import Runner
from ...export.parity import Parity, parity
from ...export.to_onnx import export as to_onnx
from ...export.to_onnx import replacing, size
from ..network.checkpoint import Checkpoint
from .options import ExportOptions

RANDOM_INPUTS = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX file beside the network that it was made of."""

    path: Path
    bytes: int
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes, **self.parity.to_dict(), "says": str(self.parity)}

    def __str__(self) -> str:
        return f"{self.path}: {self.bytes:,} bytes\n{self.parity}"


def export(
    checkpoint: Checkpoint, path: str | Path, data: Data | None = None, options: ExportOptions | None = None, *, seed: int = 0
) -> Exported:
    """Write the ONNX file; parity is measured on the test split, or on random inputs, labelled so, without data.

    Nothing is written, and an older file stays, where the file differs from the network by more than `tolerance`: then
    raises SlimrankError.
    """
    options = (options or ExportOptions()).check()
    if data is not None:
        checkpoint = checkpoint.with_classes(data)
    with replacing(path) as fresh:
        to_onnx(checkpoint.model, checkpoint.example(), fresh, onnx_metadata(checkpoint), opset=options.opset)
        found = compared(checkpoint, fresh, data, seed=seed).check(options.tolerance)
    return Exported(path=Path(path), bytes=size(path), parity=found)


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
