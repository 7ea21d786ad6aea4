"""The header of a slim checkpoint, checked before anything is built of it: the type and the range of every value.

A header is JSON that anybody may have written. What it may not do: ask for a network out of all proportion to the tensors
beside it (limits.py), name code, or fail later than here.
"""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from ...evaluate.data import Preprocessing
from .layout_names import INT8, LAYOUTS
from .plain import KINDS

LONGEST = 2**24  # characters of a header; a network of 100,000 named classes has 3 million
NAME, VALUES, DEPTH = 1000, 100_000, 8  # characters of a name, values in a list or object, and how deep they are nested
LARGEST = 10**6  # of a number that a constructor is given: channels, classes, layers

Name = Annotated[str, Meta(min_length=1, max_length=NAME)]
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Side = Annotated[int, Meta(ge=0, le=1024)]  # of a stride, a padding, a dilation
Sides = Side | Annotated[list[Side], Meta(min_length=1, max_length=6)]


@dataclass(frozen=True)
class Subspaces:
    """A SubspaceLinear in place of a linear layer."""

    in_features: Count
    layout: str
    rescore: Annotated[int, Meta(ge=0, le=LARGEST)] = 0
    probe: Annotated[int, Meta(ge=0, le=LARGEST)] = 0

    def __post_init__(self) -> None:
        if self.layout not in (*LAYOUTS, INT8):
            raise ValueError(f"no layout {self.layout!r}")


@dataclass(frozen=True)
class Plain:
    """A plain layer in place of one whose weight was computed (plain.py)."""

    type: str
    bias: bool
    stride: Sides | None = None
    padding: Sides | Literal["same", "valid"] | None = None
    dilation: Sides | None = None
    groups: Count | None = None
    output_padding: Sides | None = None
    before: Sides | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("type", "bias") and value is not None}


@dataclass(frozen=True)
class Shortcut:
    """A shortcut without weights (papers.py) that takes its channels from others than it did."""

    source: Annotated[list[Annotated[int, Meta(ge=-1, le=LARGEST)]], Meta(min_length=1, max_length=LARGEST)]
    in_channels: Count

    def __post_init__(self) -> None:
        if max(self.source) >= self.in_channels:
            raise ValueError(f"a shortcut takes channel {max(self.source)} of {self.in_channels}")


@dataclass(frozen=True)
class Grouped:
    """A conv of another number of groups."""

    groups: Count


Change = Subspaces | Plain | Shortcut | Grouped


@dataclass(frozen=True)
class Header:
    """What stands in a slim file beside its tensors; `slim_file.write` makes it."""

    format: int
    model: Name
    arguments: dict[Name, Any]
    modules: dict[Name, dict[str, Any]]
    preprocessing: Preprocessing
    classes: Annotated[list[Name], Meta(min_length=1, max_length=LARGEST)] | None
    history: list[dict[str, Any]]
    trained_on: list[dict[str, Any]] | dict[str, Any] | None  # 0.8.0 and before: the first training alone

    def __post_init__(self) -> None:
        check_arguments(self.arguments)
        for change in self.modules.values():
            _change(change)
        for one in self.trainings or ():
            if not isinstance(one.get("data"), str):
                raise ValueError(f"a training on {one.get('data')!r}")
        for name in self.classes or ():
            name.encode()  # half a character is none: UnicodeEncodeError is a ValueError

    @property
    def trainings(self) -> list[dict[str, Any]] | None:
        return [self.trained_on] if isinstance(self.trained_on, dict) else self.trained_on

    @property
    def changes(self) -> dict[str, Change]:
        return {name: _change(value) for name, value in self.modules.items()}


def parse(text: str) -> Header:
    """Read a header. Raises ValueError for whatever is none, and SlimrankError for a preprocessing that no image survives."""
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters, {LONGEST:,} is the limit")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return msgspec.convert(value, Header)


def _change(value: Any) -> Change:
    kind: type[Change]
    named = value.get("type") if isinstance(value, dict) else None
    if named == "SubspaceLinear":
        kind = Subspaces
    elif named in KINDS:
        kind = Plain
    elif named is None and isinstance(value, dict):
        kind = Shortcut if "source" in value else Grouped
    else:
        raise ValueError(f"an unknown change {str(value)[:40]}")
    return msgspec.convert(value, kind)


def check_arguments(value: Any, depth: int = 0) -> None:
    """Raise ValueError for arguments of a constructor that are no plain values of a usual size."""
    if isinstance(value, (dict, list)):
        if depth == DEPTH or len(value) > VALUES:
            raise ValueError("arguments that are nested too deeply or too many")
        for inner in value.values() if isinstance(value, dict) else value:
            check_arguments(inner, depth + 1)
    elif isinstance(value, str):
        if len(value) > NAME:
            raise ValueError(f"an argument of {len(value):,} characters")
    elif value is not None and not abs(value) <= LARGEST:  # NaN is not, either
        raise ValueError(f"an argument beyond {LARGEST:,}")
