"""What a verb was given: options, checkpoint and data as the words of the command line say."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compress.network.reading import Reading
from ..evaluate.dataspec import DataSpec
from ..option import built

if TYPE_CHECKING:
    from ..compress.network.checkpoint import Checkpoint
    from ..evaluate.data import Data

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
    return checkpoint.with_classes(data), data


def perhaps(args: argparse.Namespace) -> "tuple[Checkpoint, Data | None]":
    """As `given`, where there is data."""
    return given(args) if args.data is not None else (asked(Reading(), args).load(args.checkpoint), None)


def part(out: Path) -> Path:
    """Where training keeps what it has reached, to go on from."""
    return out.with_name(f"{out.name}.part")


def kept(out: Path) -> bool:
    """Whether a run that was stopped has left something to go on from."""
    return part(out).exists() or (out / "state.json").exists()
