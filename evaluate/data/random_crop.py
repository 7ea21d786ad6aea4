"""Random crops of pictures: augmentation that must see the whole picture, and so happens where it is decoded."""

import threading

import numpy as np
import torch
from PIL import Image

from .preprocessing import Preprocessing, planes

DRAWING = threading.Lock()


def random_crop(picture: Image.Image, preprocessing: Preprocessing, seed: int) -> np.ndarray:
    """Cut a random region (8 to 100 % of the area, sides 3:4 to 4:3) and scale it to the size; uint8 [channels, height, width].

    Source: torchvision.transforms.v2.RandomResizedCrop with its defaults, which Inception was first trained with.
    """
    from torchvision.transforms import InterpolationMode, v2

    picture = preprocessing.upright(picture)
    crop = v2.RandomResizedCrop(preprocessing.shape[1:], interpolation=InterpolationMode(preprocessing.interpolation))
    with DRAWING:  # it draws from PyTorch's global generator, which is left as it was
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        drawn = crop.make_params([picture])
        torch.set_rng_state(state)
    return planes(crop.transform(picture, drawn))
