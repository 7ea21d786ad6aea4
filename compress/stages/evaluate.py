"""Accuracy of a checkpoint or of an ONNX file, on one split."""

from pathlib import Path

from ...errors import SlimrankError
from ...evaluate.accuracy import Accuracy, accuracy
from ...evaluate.data import Data, Preprocessing
from ...evaluate.dataspec import DataSpec
from ...evaluate.latency import Runner
from ...export.to_onnx import metadata
from ..network.checkpoint import Checkpoint
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
    if "preprocessing" in known:
        preprocessing = Preprocessing.from_dict(known["preprocessing"])
    else:
        _, channels, height, _ = [*runner.input.shape, None, None, None][:4]
        side = size or height
        if not isinstance(side, int) or not isinstance(channels, int):
            raise SlimrankError(f"{path} does not say its image size ({runner.input.shape}); add `size`")
        default = Preprocessing.default(channels, side)
        preprocessing = Preprocessing(side, mean or default.mean, std or default.std)
    data = spec.open(preprocessing)
    classes = data.classes_for("accuracy")
    if known.get("classes") and known["classes"] != classes:
        raise SlimrankError(f"{path} was made for other classes than `data` {data.spec} has; use data with the same classes")
    return accuracy(runner, data.split(split).batches(), len(classes))
