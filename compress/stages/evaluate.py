"""Accuracy of a checkpoint or of an ONNX file, on one split."""

from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from ...evaluate.accuracy import Accuracy, accuracy
from ...evaluate.data import Data, Preprocessing
from ...evaluate.dataspec import DataSpec
from ...evaluate.runner import Runner
from ...export.to_onnx import metadata
from ..network.checkpoint import MAX_SIZE, Checkpoint
from .measure import accuracy_on


def evaluate(checkpoint: Checkpoint, data: Data, *, split: str = "test", device: str = "cpu") -> Accuracy:
    """Measure accuracy, after checking that model and data mean the same classes."""
    checkpoint.with_classes(data)
    classes = data.classes_for("accuracy")
    return accuracy_on(checkpoint.model, data.split(split), len(classes), device)


def evaluate_onnx(
    path: Path, spec: DataSpec, *, split: str = "test", provider: str = "cpu", size: int | None = None,
    mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
) -> Accuracy:  # fmt: skip
    """Measure an ONNX file's accuracy; preprocessing and class names come from its metadata, else from what is given.

    Raises SlimrankError where neither says the image size, and for data of other classes.
    """
    runner = Runner(path, provider)
    known = metadata(path)
    seen = _stored(path, known) if "preprocessing" in known else _given(runner, size, mean, std)
    data = spec.open(seen)
    classes = data.classes_for("accuracy")
    if known.get("classes") and known["classes"] != classes:
        raise SlimrankError(f"{path} was made for other classes than `data` {data.spec} has; use data with the same classes")
    return accuracy(runner, data.split(split).batches(), len(classes))


def _stored(path: Path, known: dict[str, Any]) -> Preprocessing:
    """Preprocessing as the file's metadata says it; SlimrankError where it does not make sense."""
    try:
        seen = Preprocessing.from_dict(known["preprocessing"])
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise SlimrankError(f"{path} holds damaged preprocessing ({error}); export it again") from error
    if seen.size > MAX_SIZE:
        raise SlimrankError(f"{path} wants images of {seen.size} pixels, more than {MAX_SIZE}; export it again")
    return seen


def _given(runner: Runner, size: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Preprocessing:
    """Preprocessing for a file that says nothing of it; one that reads whole numbers is given the pixels as they are."""
    shape = runner.input.shape
    _, channels, height, _ = [*shape, None, None, None][:4]
    side = size or height
    if len(shape) != 4 or (isinstance(channels, int) and channels not in (1, 3)):
        raise SlimrankError(f"{runner.path} reads {shape}, must read [batch, 1 or 3 channels, height, width]; export it so")
    if not isinstance(side, int) or not isinstance(channels, int):
        raise SlimrankError(f"{runner.path} does not say its image size ({shape}); add `size`")
    default = Preprocessing.default(channels, side)
    if runner.kind.kind != "f":
        default = Preprocessing(side, (0.0,) * channels, (1 / 255,) * channels)
    return Preprocessing(side, mean or default.mean, std or default.std)
