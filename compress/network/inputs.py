"""What a network reads: how many channels an image has, found by running it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.data import Preprocessing
from ...evaluate.imagespec import ImageSpec
from . import zoo
from .forward import forward
from .layers import WEIGHTED
from .published import in_channels

USUAL = (3, 1, 4, 2)  # channels of images, the likeliest first


def image_channels(model: nn.Module, sides: Sequence[int], told: int | None = None) -> int:
    """Count the channels of the images [height, width] that a network reads.

    The first conv it has tells, where the network runs on so many; it need not be the one that reads the image. `told`: how
    many the user says. Raises SlimrankError with the network's own error where it runs on no number of channels.
    """
    convs = [
        module.in_channels for module in model.modules() if isinstance(module, WEIGHTED) and not isinstance(module, nn.Linear)
    ]
    if not convs:
        raise SlimrankError("the model has no conv layer; slimrank compresses CNN classifiers")
    candidates = dict.fromkeys([*([told] if told else []), convs[0], *USUAL, *(n for n in convs if n <= 32)])
    failures = {}
    for channels in candidates:
        try:
            forward(model, image(model, (channels, *sides)))
        except SlimrankError as error:
            failures[channels] = error
            continue
        return channels
    raise failures[convs[0] if convs[0] in USUAL else USUAL[0]]


def seen(
    model: nn.Module, name: str, images: ImageSpec, file: str = "", usual: Preprocessing | None = None
) -> tuple[Preprocessing, int]:
    """How a network sees images where `images` leaves it open, and how many channels it reads; `usual`: what is published for
    it, by default what is for networks of its name."""

    def over(channels: int) -> Preprocessing:
        return images.over(zoo.preprocessing(name, channels, file) if usual is None else in_channels(usual, channels))

    told = len(images.mean or images.std or ()) or None
    channels = image_channels(model, over(told or USUAL[0]).shape[1:], told)
    return over(channels), channels


def image(model: nn.Module, shape: Sequence[int], images: int = 1) -> Tensor:
    """Make random images, [images, channels, height, width], the same ones each time, of the network's type and device."""
    generator = torch.Generator().manual_seed(0)
    like = next(model.parameters(), torch.empty(0))
    return torch.randn(images, *shape, generator=generator).to(like)
