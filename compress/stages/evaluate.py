"""Accuracy of a checkpoint or of an ONNX file, on one split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import SlimrankError
from ...evaluate.accuracy import Accuracy, accuracy, decisions
from ...evaluate.data import Data, Preprocessing
from ...evaluate.data.decode import MODES
from ...evaluate.dataspec import DataSpec
from ...evaluate.imagespec import ImageSpec
from ...evaluate.runner import Runner
from ...export.to_onnx import metadata
from ..network.checkpoint import Checkpoint
from ..network.reading import Reading
from ..network.slim_file import header_of
from ..network.state import read_safetensors
from .measure import accuracy_on, decided


def evaluate(checkpoint: Checkpoint, data: Data, *, split: str = "test", device: str = "cpu") -> Accuracy:
    """Measure accuracy, after checking that model and data mean the same classes."""
    checkpoint.with_classes(data)
    classes = data.classes_for("accuracy")
    return accuracy_on(checkpoint.model, data.split(split), len(classes), device)


def evaluate_onnx(
    path: Path, spec: DataSpec, *, split: str = "test", provider: str = "cpu", images: ImageSpec | None = None
) -> Accuracy:
    """Measure an ONNX file's accuracy; preprocessing and class names come from its metadata, else from `images`.

    Raises SlimrankError where neither says the image size, where both do, and for data of other classes.
    """
    runner, known = Runner(path, provider), metadata(path)
    data = spec.open(seen_by(runner, images or ImageSpec()))
    classes = data.classes_for("accuracy")
    if known.get("classes") and known["classes"] != classes:
        raise SlimrankError(f"{path} was made for other classes than `data` {data.spec} has; use data with the same classes")
    return accuracy(runner, data.split(split).batches(), len(classes))


def same_decisions(
    paths: Sequence[Path], reading: Reading, spec: DataSpec, *, split: str = "test", device: str = "cpu", provider: str = "cpu"
) -> tuple[float, int]:
    """Share of images on which two files, checkpoints or ONNX, decide for the same class, and the number of images; labels
    are not read. `reading`: how those are read, and see images, that do not say so themselves."""
    first, second = (_decisions(path, reading, spec, split, device, provider) for path in paths)
    return int((first == second).sum()) / len(first), len(first)


def _decisions(path: Path, reading: Reading, spec: DataSpec, split: str, device: str, provider: str) -> Tensor:
    if path.suffix.lower() == ".onnx":
        runner = Runner(path, provider)
        images = ImageSpec() if "preprocessing" in metadata(path) else reading.images
        return decisions(runner, spec.open(seen_by(runner, images)).split(split).batches())
    if path.suffix.lower() == ".safetensors":  # it says all of it, but for a model of the user's own that is to be trusted
        header = header_of(path, read_safetensors(path)[1])
        reading = Reading(model=reading.model if header is not None and header.model == reading.model else None)
    checkpoint = reading.load(path)
    return decided(checkpoint.model, spec.open(checkpoint.preprocessing), split, device=device).classes


def seen_by(runner: Runner, images: ImageSpec) -> Preprocessing:
    """How an ONNX file sees images: as its metadata says, else `images`; SlimrankError where neither does, or both."""
    known = metadata(runner.path)
    if "preprocessing" not in known:
        return _given(runner, images)
    if images.given:
        said = ", ".join(f"`{name}`" for name in images.given)
        raise SlimrankError(f"{runner.path} carries its own preprocessing; leave out {said}")
    return _stored(runner.path, known)


def _stored(path: str, known: dict[str, Any]) -> Preprocessing:
    """Preprocessing as the file's metadata says it; SlimrankError where it does not make sense."""
    try:
        return Preprocessing.from_dict(known["preprocessing"])
    except ValueError as error:
        raise SlimrankError(f"{path} holds damaged preprocessing ({error}); export it again") from error
    except SlimrankError as error:
        raise SlimrankError(f"{path} holds damaged preprocessing: {error}; export it again") from error


def _given(runner: Runner, images: ImageSpec) -> Preprocessing:
    """Preprocessing for a file that says nothing of it; one that reads whole numbers is given the pixels as they are."""
    shape = runner.input.shape
    _, channels, *sides = [*shape, None, None, None][:4]
    size = images.size or tuple(sides)
    if len(shape) != 4 or (isinstance(channels, int) and channels not in MODES):
        raise SlimrankError(f"{runner.path} reads {shape}, must read [batch, 1 to 4 channels, height, width]; export it so")
    if not isinstance(channels, int) or not (isinstance(size, int) or all(isinstance(side, int) for side in size)):
        raise SlimrankError(f"{runner.path} does not say its image size ({shape}); add `size`")
    default = Preprocessing.default(channels, size)
    if runner.kind.kind != "f":
        default = replace(default, mean=(0.0,) * channels, std=(1 / 255,) * channels)
    return images.over(default)
