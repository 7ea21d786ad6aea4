"""What several stages measure, and on which images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ...evaluate.accuracy import Accuracy, accuracy, decisions, predictor
from ...evaluate.data import Data, Images
from ..network.device import on


def accuracy_on(model: nn.Module, images: Images, classes: int, device: str = "cpu") -> Accuracy:
    """Measure accuracy on a split; the model lies where it did, before and after."""
    with on(device, model):
        return accuracy(predictor(model), images.batches(device=device), classes)


@dataclass(frozen=True)
class Decided:
    """What a network decides on a split: the class of each image, int64 [images]; `top1` None where images have no labels."""

    classes: Tensor
    top1: float | None


def decided(model: nn.Module, data: Data, split: str = "test", *, device: str = "cpu") -> Decided:
    """Take a network's decisions on a split, and its accuracy where there are labels, in one pass."""
    with on(device, model):
        return decided_by(predictor(model), data, split, device=device)


def decided_by(predict: Callable[[Tensor], Tensor], data: Data, split: str = "test", *, device: str = "cpu") -> Decided:
    """As `decided`, of whatever makes logits of images: an ONNX file's Runner."""
    images = data.split(split)
    classes = decisions(predict, images.batches(device=device))
    return Decided(classes, None if data.classes is None else _share(classes == images.labels))


def agreement(dense: Decided, smaller: Decided) -> float:
    """Share of images on which two networks decide for the same class."""
    return _share(dense.classes == smaller.classes)


def left_to_lose(max_drop: float, before: float, model: nn.Module, data: Data, *, device: str = "cpu") -> float:
    """What a network may still lose of a `max_drop`, of which it has used a part; `before`: the dense top-1 on validation."""
    after = decided(model, data, "validation", device=device).top1
    assert after is not None
    return max(0.0, max_drop - (before - after))


def _share(equal: Tensor) -> float:
    return int(equal.sum()) / len(equal)
