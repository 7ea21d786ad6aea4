"""Which images: a data set as options name it. Free of torch: the parser reads it."""

from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING

from ..errors import SlimrankError
from ..option import option

if TYPE_CHECKING:
    from .data import Data, Preprocessing


UNLABELLED = "images"  # the kind of data that has no classes


def needs_labels(what: str, remedy: str = "give data with classes, as folder:DIR") -> SlimrankError:
    """Refusal of `what` on images without classes."""
    return SlimrankError(f"{what} needs labels, and `data` {UNLABELLED}:DIR has none; {remedy}")


@dataclass(frozen=True)
class DataSpec:
    """A data set and its splits, not yet read: see `open_data`, which `open` calls, for every field."""

    data: str = option(
        MISSING, "digits, glyphs, mnist:DIR, cifar10:DIR, folder:DIR, images:DIR (no labels), ...", metavar="SPEC"
    )
    validation: str = option("train:0.1", "train:F or test:F (default train:0.1)")
    limit: int | None = option(None, "at most this many images of each split")
    seed: int = option(0)
    download: bool = option(False)
    workers: int = option(0, "processes that decode images (default 0: threads of this one); results do not depend on it")

    @property
    def labelled(self) -> bool:
        """Whether its images have classes."""
        return self.data.partition(":")[0] != UNLABELLED

    def open(self, preprocessing: "Preprocessing") -> "Data":
        """Read the data set's index for a network that reads images so; raises SlimrankError where it cannot be read."""
        from .data import open_data

        return open_data(
            self.data, preprocessing, validation=self.validation, limit=self.limit, seed=self.seed, download=self.download,
            workers=self.workers,
        )  # fmt: skip
