"""What a verb was given: options, checkpoint and data as the words of the command line say."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compress.network.reading import Reading
from ..errors import SlimrankError
from ..evaluate.dataspec import DataSpec
from ..option import built
from ..processes import agree, together

if TYPE_CHECKING:
    from ..compress.network.checkpoint import Checkpoint
    from ..evaluate.data import Data

ONE_COMMAND = "start all processes with the same command, on the same files"
Result = tuple[dict[str, Any], str]


def asked(tree: Any, args: argparse.Namespace) -> Any:
    """A dataclass of options with what the command line says."""
    return built(tree, vars(args))


def spec_of(args: argparse.Namespace) -> DataSpec:
    spec: DataSpec = asked(DataSpec(data=""), args)
    return spec


def given(args: argparse.Namespace) -> "tuple[Checkpoint, Data]":
    """The checkpoint, and the data as the checkpoint sees images; both mean the same classes."""
    checkpoint = asked(Reading(), args).load(args.checkpoint)
    data = spec_of(args).open(checkpoint.preprocessing)
    if together():
        agree("data set", {"images": data.listing}, ONE_COMMAND)
    return checkpoint.with_classes(data), data


def perhaps(args: argparse.Namespace) -> "tuple[Checkpoint, Data | None]":
    """As `given`, where there is data."""
    return given(args) if args.data is not None else (asked(Reading(), args).load(args.checkpoint), None)


def join_others(args: argparse.Namespace, divides: list[str]) -> None:
    """Become one job with the other processes that were started; they were all asked for the same, of the same files.

    `divides`: the verbs that several processes can run. Raises SlimrankError for another one, and for those that differ.
    """
    from .. import __version__
    from ..compress.network.hf_models import weights
    from ..joining import join

    if args.verb not in divides:
        raise SlimrankError(f"{args.verb} runs in one process; start it without torchrun (several run {', '.join(divides)})")
    join(args.device)
    import torch

    mine = {"slimrank": __version__, "torch": torch.__version__}
    for name, value in vars(args).items():
        if name in ("say", "words", "debug", "json"):
            continue
        mine[f"`{name}`"] = str(value)
        if isinstance(value, Path) and name != "out" and (file := weights(value)).is_file():
            mine[f"`{name}`"] += f" ({hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"
    agree("command", mine, ONE_COMMAND)


def part(out: Path) -> Path:
    """Where training keeps what it has reached, to go on from."""
    return out.with_name(f"{out.name}.part")


def kept(out: Path) -> bool:
    """Whether a run that was stopped has left something to go on from."""
    return part(out).exists() or (out / "state.json").exists()
