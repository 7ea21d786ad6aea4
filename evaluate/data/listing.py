"""Which files below a folder are pictures, and what is said of those that are not."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import SlimrankError, SlimrankWarning
from .decode import SUFFIXES

LITTER = ("__MACOSX", "@eaDir", "lost+found")  # folders that archives and file systems leave; dot files are hidden anyway


@dataclass
class Listing:
    """Lists pictures below folders; counts them (`taken`) and other files (`left_out`) by suffix, hidden ones nowhere."""

    taken: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def below(self, folder: str | Path, *, follow: bool) -> list[str]:
        """List the pictures below a folder, in no order; links to folders are followed or not.

        Raises SlimrankError for a picture that is no regular file (a pipe waits for ever), and for links that go in a circle.
        """
        return list(self._below(os.fspath(folder), follow, ()))

    def _below(self, folder: str, follow: bool, above: tuple[str, ...]) -> Iterator[str]:
        above = (*above, os.path.realpath(folder)) if follow else above
        for entry in visible(folder):
            if entry.is_dir():
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(entry.path, follow, above)
                elif follow:
                    if os.path.realpath(entry.path) in above:
                        raise SlimrankError(f"{entry.path} is a link to a folder that it lies in; remove it")
                    yield from self._below(entry.path, follow, above)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix not in SUFFIXES:
                self.left_out[suffix or "without a suffix"] += 1
            elif entry.is_file():
                self.taken[suffix] += 1
                yield entry.path
            else:
                raise SlimrankError(f"{entry.path} is no regular file, or a link to nothing; remove it")

    @property
    def others(self) -> str:
        """How many files were left out, by suffix, in brackets; empty where there are none."""
        return f" ({_counts(self.left_out)})" if self.left_out else ""

    def tell(self, spec: str) -> None:
        """Warn where files were left out, and where pictures are read that torchvision's ImageFolder would leave out."""
        from torchvision.datasets.folder import IMG_EXTENSIONS

        if self.left_out:
            told = f"files that are no pictures by their names are left out{self.others}; if they are, convert them to .png"
            warnings.warn(f"`data` {spec}: {told}", SlimrankWarning, stacklevel=2)
        if more := Counter({suffix: n for suffix, n in self.taken.items() if suffix not in IMG_EXTENSIONS}):
            told = f"{_counts(more)} are read as well, the first frame of each; torchvision's ImageFolder leaves them out"
            warnings.warn(f"`data` {spec}: {told}", SlimrankWarning, stacklevel=2)


def _counts(suffixes: Counter[str]) -> str:
    return ", ".join(f"{n:,} {suffix}" for suffix, n in suffixes.most_common(5))


def visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without what is hidden (a leading dot) or litter."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in LITTER]
    return sorted(shown, key=lambda entry: entry.name)
