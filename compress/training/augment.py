"""Random shifts and mirrorings of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(
    images: Tensor, augment: str, generator: torch.Generator, batch: int | None = None, rows: slice = slice(None)
) -> Tensor:
    """Mirror each image with probability 1/2 and shift it by up to an eighth of its height: [n, channels, height, width].

    `augment` is one of recipe.AUGMENT. Zeros, the mean of normalised images, come in at the border. `images` may be the
    `rows` of a larger `batch`, for all of which is drawn.
    """
    n, _, height, width = images.shape
    drawn = batch or n
    if "flip" in augment:
        flip = torch.rand(drawn, generator=generator)[rows].to(images.device) < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    if "shift" in augment:
        pad = max(1, height // 8)
        padded = F.pad(images, (pad,) * 4)
        top, left = torch.randint(0, 2 * pad + 1, (2, drawn), generator=generator)[:, rows].to(images.device)
        rows = (top[:, None] + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, None, :]
        image = torch.arange(n, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        images = padded[image, channel, rows, columns]
    return images
