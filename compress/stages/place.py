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
from ...processes import alone
from ..network.hf_models import weights

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
    """What makes two commands the same: the checkpoint's bytes, every option that decides a result, the version. Plain JSON."""
    deciding = {key: value for key, value in asked.items() if key != "workers"}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in deciding.items()}
    return {"checkpoint": hashlib.sha256(weights(checkpoint).read_bytes()).hexdigest(), **plain, "slimrank": __version__}


def difference(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What one command was asked for and the other not, in words; empty where they are the same."""
    for key, value in asked.items():
        if before.get(key) != value:
            parameter = {"name": "model", "arguments": "model_arg"}.get(key, key)
            shown = f"`{parameter}` {_typed(before.get(key))}, not {_typed(value)}"
            return "another checkpoint" if key == "checkpoint" else shown
    return ""


def _typed(value: object) -> str:
    """An option's value as it is given on the command line."""
    return "its default" if value is None else ",".join(map(str, value)) if isinstance(value, list) else repr(value)


def beside(out: Path, asked: dict[str, Any]) -> Place:
    """The place of a command that writes `out`: OUT.part. Raises SlimrankError where it is another command's."""
    place = Place(out.with_name(f"{out.name}.part"))
    known = place.at(IDENTITY)
    anew = f"remove the folder {place.folder} to start anew, or go on with the settings it was started with"

    def take() -> None:
        if known.exists() and (other := difference(read_json(known, "the state in", anew), asked)):
            raise SlimrankError(f"{place.folder} is of an interrupted run with {other}; {anew}")
        ready(known)
        if not known.exists():
            write_json(known, asked)

    alone(take)
    return place
