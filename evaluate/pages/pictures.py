"""Small pictures of filters, maps and images, as data URIs for self-contained pages."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

WHITE = 255


def uri(picture: np.ndarray, photograph: bool = False) -> str:
    """Encode a uint8 picture [height, width, 3] as a data URI: PNG, or JPEG for photographs."""
    buffer = io.BytesIO()
    if photograph:
        Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    else:
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photograph else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def kernel(weight: np.ndarray) -> np.ndarray:
    """Colour a kernel [1 or 3, h, w] as a picture [h, w, 3]: zero is grey, the largest weight saturated."""
    weight = weight if len(weight) == 3 else np.repeat(weight[:1], 3, 0)
    largest = max(float(np.abs(weight).max()), 1e-12)
    scaled: np.ndarray = ((weight.transpose(1, 2, 0) / largest + 1) * 127.5).round().astype(np.uint8)
    return scaled


def heat(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Colour a map [h, w] as a picture [h, w, 3]: dark at zero and below, bright at `largest` (default: its maximum)."""
    from matplotlib import colormaps

    largest = float(values.max()) if largest is None else largest
    colours = colormaps["viridis"](np.clip(values / max(largest, 1e-12), 0, 1))[..., :3]
    return (np.asarray(colours) * 255).round().astype(np.uint8)


def photograph(pixels: np.ndarray) -> np.ndarray:
    """Turn uint8 pixels [channels, h, w] into a picture [h, w, 3]: the first three channels, or the first as grey."""
    pixels = pixels[:3] if len(pixels) >= 3 else np.repeat(pixels[:1], 3, 0)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def montage(rows: Sequence[Sequence[np.ndarray | None]], side: int, gap: int = 3, smooth: bool = False) -> np.ndarray:
    """Lay pictures out in rows on white, each scaled to `side` pixels and `gap` apart; None leaves a place empty."""
    columns = max(len(row) for row in rows)
    page = np.full((len(rows) * (side + gap) - gap, columns * (side + gap) - gap, 3), WHITE, np.uint8)
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            if picture is not None:
                tile = np.asarray(Image.fromarray(picture).resize((side, side), resampling))
                page[i * (side + gap) : i * (side + gap) + side, j * (side + gap) : j * (side + gap) + side] = tile
    return page
