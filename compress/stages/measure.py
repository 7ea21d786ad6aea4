"""What several stages measure, and on which images."""

from torch import nn

from ...evaluate.accuracy import Accuracy, accuracy, predictor
from ...evaluate.data import Data, Images
from ..network.device import on
from ..training.recalibrate import IMAGES, recalibrate


def accuracy_on(model: nn.Module, images: Images, classes: int, device: str = "cpu") -> Accuracy:
    """Measure accuracy on a split; the model lies where it did, before and after."""
    with on(device, model):
        return accuracy(predictor(model), images.batches(device=device), classes)


def recalibrated(model: nn.Module, data: Data, *, seed: int, device: str = "cpu") -> nn.Module:
    """Copy the model with BatchNorm's statistics taken anew on training images, IMAGES of a seeded shuffle."""
    with on(device, model):
        calibrated = recalibrate(model, data.split("train").sample(IMAGES, seed).batches(device=device))
    return calibrated.to("cpu")
