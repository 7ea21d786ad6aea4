"""A folder that keeps what a kill must not lose, of one command and no other."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import SlimrankError
from ...files import read_json, ready, write_json

IDENTITY = "asked.json"


@dataclass(frozen=True)
class Place:
    """Where a stage leaves what it has reached, to go on from."""

    folder: Path

    def at(self, name: str) -> Path:
        return self.folder / name

    def remove(self) -> None:
        """Drop the folder, once the result is saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def identity(checkpoint: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two commands the same: the checkpoint's bytes, every option, the version. Plain JSON."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    return {"checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), **plain, "slimrank": __version__}


def beside(out: Path, asked: dict[str, Any]) -> Place:
    """The place of a command that writes `out`: OUT.part. Raises SlimrankError where it is another command's."""
    place = Place(out.with_name(f"{out.name}.part"))
    known = place.at(IDENTITY)
    anew = f"remove the folder {place.folder} to start anew, or go on with the settings it was started with"
    if known.exists() and read_json(known, "the state in", anew) != asked:
        raise SlimrankError(f"{place.folder} is of an interrupted run with another checkpoint or other settings; {anew}")
    ready(known)
    if not known.exists():
        write_json(known, asked)
    return place
