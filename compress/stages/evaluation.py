"""Accuracy and export of a checkpoint, the checks included."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...errors import SlimrankError
from ...evaluate.accuracy import Accuracy, accuracy, predictor
from ...evaluate.data import Data, Preprocessing
from ...evaluate.latency import Runner
from ...export.parity import Parity, parity
from ...export.to_onnx import export as to_onnx
from ...export.to_onnx import metadata, size
from ..network.checkpoint import Checkpoint

Opener = Callable[[Preprocessing], Data]
RANDOM_INPUTS = 64


def of_checkpoint(checkpoint: Checkpoint, opener: Opener, split: str, device: str = "cpu") -> Accuracy:
    """Accuracy on one split, after checking that model and data mean the same classes."""
    data = opener(checkpoint.preprocessing)
    checkpoint.with_classes(data)
    batches = data.split(split).batches(device=device)
    return accuracy(predictor(checkpoint.model.to(device)), batches, len(data.classes))


def of_onnx(path: Path, opener: Opener, reading: dict[str, Any], provider: str, split: str) -> Accuracy:
    """Accuracy of an ONNX file; preprocessing and class names come from its metadata, or from --mean, --std and --size."""
    runner = Runner(path, provider)
    known = metadata(path)
    if "preprocessing" in known:
        preprocessing = Preprocessing.from_dict(known["preprocessing"])
    else:
        _, channels, height, _ = [*runner.input.shape, None, None, None][:4]
        size = reading["size"] or height
        if not isinstance(size, int) or not isinstance(channels, int):
            raise SlimrankError(f"{path} does not say its image size ({runner.input.shape}); add --size")
        default = Preprocessing.default(channels, size)
        preprocessing = Preprocessing(size, reading["mean"] or default.mean, reading["std"] or default.std)
    data = opener(preprocessing)
    if known.get("classes") and known["classes"] != data.classes:
        raise SlimrankError(f"{path} was made for other classes than --data {data.spec} has; use data with the same classes")
    return accuracy(runner, data.split(split).batches(), len(data.classes))


def onnx_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the ONNX file carries: enough for `evaluate MODEL.onnx`."""
    return {
        "slimrank": __version__,
        "model": checkpoint.name,
        "preprocessing": asdict(checkpoint.preprocessing),
        "classes": checkpoint.classes,
        "history": checkpoint.history,
    }


def compared(checkpoint: Checkpoint, path: Path, data: Data | None, seed: int = 0) -> Parity:
    """Parity on the test split, or on random inputs, labelled so, where there is no data."""
    if data is not None:
        return parity(checkpoint.model, Runner(path), data.split("test").batches(), "test images")
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(RANDOM_INPUTS, *checkpoint.preprocessing.shape, generator=generator)
    return parity(checkpoint.model, Runner(path), [(inputs, None)], "random inputs")


def export(checkpoint: Checkpoint, path: Path, opener: Opener | None) -> dict[str, Any]:
    """Write the ONNX file and compare it with PyTorch."""
    data = None
    if opener is not None:
        data = opener(checkpoint.preprocessing)
        checkpoint = checkpoint.with_classes(data)
    to_onnx(checkpoint.model, checkpoint.example(), path, onnx_metadata(checkpoint))
    found = compared(checkpoint, path, data)
    return {"path": str(path), "bytes": size(path), **found.to_dict(), "says": str(found)}
