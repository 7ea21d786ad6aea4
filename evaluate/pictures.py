"""Small pictures of filters, maps and images, as data URIs that stand in a page of their own."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

WHITE = 255


def uri(picture: np.ndarray, photograph: bool = False) -> str:
    """uint8 [height, width, 3] as a data URI: PNG, or JPEG for photographs."""
    buffer = io.BytesIO()
    if photograph:
        Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    else:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def kernel(weight: np.ndarray) -> np.ndarray:
    """[1 or 3, h, w] as a picture [h, w, 3]: zero is grey, the largest weight full."""
    weight = weight if len(weight) == 3 else np.repeat(weight[:1], 3, 0)
    top = max(float(np.abs(weight).max()), 1e-12)
    return ((weight.transpose(1, 2, 0) / top + 1) * 127.5).round().astype(np.uint8)


def heat(values: np.ndarray, top: float | None = None) -> np.ndarray:
    """[h, w] as a picture [h, w, 3]: dark at zero and below, bright at `top` (default: its own maximum)."""
    from matplotlib import colormaps

    top = float(values.max()) if top is None else top
    return (colormaps["viridis"](np.clip(values / max(top, 1e-12), 0, 1))[..., :3] * 255).round().astype(np.uint8)


def photograph(pixels: np.ndarray) -> np.ndarray:
    """uint8 [1 or 3, h, w] as a picture [h, w, 3]."""
    pixels = pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, 0)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def montage(rows: Sequence[Sequence[np.ndarray | None]], side: int, gap: int = 3, smooth: bool = False) -> np.ndarray:
    """Pictures in rows, each scaled to `side` pixels; None leaves a place empty."""
    columns = max(len(row) for row in rows)
    page = np.full((len(rows) * (side + gap) - gap, columns * (side + gap) - gap, 3), WHITE, np.uint8)
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            if picture is not None:
                tile = np.asarray(Image.fromarray(picture).resize((side, side), how))
                page[i * (side + gap) : i * (side + gap) + side, j * (side + gap) : j * (side + gap) + side] = tile
    return page
