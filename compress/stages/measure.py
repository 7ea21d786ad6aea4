"""What several stages measure, and on which images."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ...evaluate.accuracy import Accuracy, accuracy, predictor
from ...evaluate.data import Data, Images
from ..training.recalibrate import IMAGES, recalibrate


@contextmanager
def on(device: str, *models: nn.Module) -> Iterator[None]:
    """Within the context, the models lie on a device; afterwards, on the CPU."""
    try:
        for model in models:
            model.to(device)
        yield
    finally:
        for model in models:
            model.to("cpu")


def accuracy_on(model: nn.Module, images: Images, classes: int, device: str = "cpu") -> Accuracy:
    """Measure accuracy on a split; the model lies on the CPU before and after."""
    with on(device, model):
        return accuracy(predictor(model), images.batches(device=device), classes)


def recalibrated(model: nn.Module, data: Data, *, seed: int, device: str = "cpu") -> nn.Module:
    """Copy the model with BatchNorm's statistics taken anew on training images, IMAGES of a seeded shuffle."""
    with on(device, model):
        calibrated = recalibrate(model, data.split("train").sample(IMAGES, seed).batches(device=device))
    return calibrated.to("cpu")
