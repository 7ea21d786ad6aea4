"""How a network sees images, as options name it. Free of torch: the parser reads it."""

import argparse
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import SlimrankError
from ..option import option

if TYPE_CHECKING:
    from .data import Preprocessing

Side = int | tuple[int, int]  # pixels of a square's side, or height and width
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def read_side(text: str) -> Side:
    """Read 224, 224x320 or 224,320 (height, width)."""
    try:
        height, *rest = map(int, text.replace("x", ",").split(","))
        if len(rest) > 1:
            raise ValueError
        return (height, rest[0]) if rest and rest[0] != height else height
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not pixels, as 224 or 224x320 (height, width)") from error


def read_resize(text: str) -> Side:
    """Read 256 (of the shorter side), or 256x320 (height, width), which 256x256 is as well."""
    side = read_side(text)
    return side if text.isdecimal() or isinstance(side, tuple) else (side, side)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What is known of how a network sees images; None leaves it as usual for the network.

    The fields are those of `Preprocessing`. `crop_pct`: `size` over what images are scaled to, in place of `resize`. `range`:
    the largest value of a pixel that `mean` and `std` are given for.
    """

    size: Side | None = option(
        None, "the network's input, cut from the middle of the scaled image (default: the network's own)",
        flag=("--size", "--crop"), read=read_side, metavar="HxW",
    )  # fmt: skip
    resize: Side | None = option(
        None, "scale the shorter side to R pixels before the crop, or the image to HxW whatever its shape (default: as the "
        "network was published, else --size)", read=read_resize, metavar="R",
    )  # fmt: skip
    crop_pct: float | None = option(None, "timm's word for it: --size / --resize, as 0.875")
    interpolation: str | None = option(None, f"{', '.join(INTERPOLATIONS)} (default: as published, else bilinear)")
    mean: tuple[float, ...] | None = option(None, "of each channel, comma-separated (default: ImageNet's)")
    std: tuple[float, ...] | None = option(None)
    range: float | None = option(None, "largest pixel value that --mean and --std are given for: 1 (default) or 255")

    @property
    def given(self) -> list[str]:
        """The names of the fields that are not None."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]

    def over(self, usual: "Preprocessing") -> "Preprocessing":
        """The usual preprocessing of a network with what is given here.

        A size of its own is filled by the whole image, as far as its shape allows: the usual `resize` belongs to the usual
        size. Raises SlimrankError for what contradicts itself.
        """
        from dataclasses import replace

        if self.resize is not None and self.crop_pct is not None:
            raise SlimrankError("`resize` and `crop_pct` both say how large images are before the crop; give one of them")
        if self.range is not None and (self.mean is None or self.std is None or not 0 < self.range <= 65535):
            raise SlimrankError(f"`range` {self.range} says what `mean` and `std` are given for, 1 or 255; give both of them")
        changed: dict[str, Any] = {name: getattr(self, name) for name in ("size", "interpolation") if name in self.given}
        scale = self.range or 1.0
        changed |= {name: tuple(v / scale for v in getattr(self, name)) for name in ("mean", "std") if name in self.given}
        if self.resize is not None or self.crop_pct is not None:
            changed |= {"resize": self.resize, "crop_pct": 1.0 if self.crop_pct is None else self.crop_pct}
        elif self.size is not None and self.size != usual.size:
            changed |= {"resize": None, "crop_pct": 1.0}
        return replace(usual, **changed)
