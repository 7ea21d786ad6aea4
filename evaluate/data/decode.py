"""Picture files: which are read, and how they are opened. They come from anywhere: a file is judged by what is in it."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import SlimrankError

FORMATS = {  # Pillow's decoders that are used, and what their files are called; others start programs or are no photographs
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png", ".apng"), "WEBP": (".webp",), "GIF": (".gif",),
    "BMP": (".bmp",), "DIB": (".dib",), "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"), "AVIF": (".avif",), "MPO": (".mpo",), "TGA": (".tga",), "QOI": (".qoi",),
}  # fmt: skip
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 178_956_970  # of a picture: Pillow's own limit
DEEP_PIXELS = 2**26  # of a picture of more than 8 bits, which takes eight times the memory on its way
LARGE_PIXELS, _LARGE = 2**24, threading.Lock()  # of larger pictures one is decoded at a time
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF
WHITE_IS_ZERO = 0
TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture file, whatever its name says that it is.

    Raises SlimrankError, which names the file, where it is no picture of FORMATS, no regular file, damaged or too large, and
    for whatever goes wrong while it is open.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SlimrankError("it is no regular file")
        with Image.open(path, formats=_decoders()) as picture:
            pixels = picture.width * picture.height
            if pixels > (DEEP_PIXELS if picture.mode[0] in "IF" else MAX_PIXELS):
                raise Image.DecompressionBombError
            with _LARGE if pixels > LARGE_PIXELS else contextlib.nullcontext():
                yield picture
    except SlimrankError as error:
        raise SlimrankError(f"{path}: {error}") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise SlimrankError(
            f"{path} has too many pixels, {MAX_PIXELS:,} of 8 bits are the limit; scale it down or remove it"
        ) from error
    except Exception as error:  # of a damaged file every decoder raises what it likes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SlimrankError(f"{path} cannot be read as an image ({reason}); mend or remove it") from error


@cache
def _decoders() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def eight_bits(picture: Image.Image) -> Image.Image:
    """Bring grey pictures of 16 bits to 8, white to white, and palettes with transparency to RGBA; others stay as they are.

    Raises SlimrankError for 32-bit and floating-point pixels: nothing says which of their values is white.
    """
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise SlimrankError("its pixels are 32 bits wide, and nothing says which value is white; save it with 8 or 16 bits")
    if not picture.mode.startswith("I"):
        return picture
    tags = getattr(picture, "tag_v2", {})
    white = 2 ** tags.get(BITS, (16,))[0] - 1
    grey = np.asarray(picture).astype(np.float32) * (255 / white)
    grey = 255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def turn(picture: Image.Image) -> Image.Transpose | None:
    """What brings a picture upright, by its EXIF orientation; None where it is, or EXIF is damaged."""
    picture.load()  # a TIFF is turned by that, and forgets its orientation
    try:
        return TRANSPOSED.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # of damaged EXIF Pillow's parser raises what it likes; the pixels are as good as without
        return None
