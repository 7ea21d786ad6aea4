"""A recipe: options of `compress` in TOML, a table a stage; made from the dataclasses of options. Free of torch."""

import argparse
import json
import shlex
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from ... import __version__
from ...errors import SlimrankError, SlimrankWarning
from ...evaluate.dataspec import DataSpec
from ...evaluate.imagespec import ImageSpec
from ...option import Option, option, options, tables
from ..network.reading import Reading
from ..options import CompressOptions
from ..pruning.options import BUDGETS
from ..stages.options import Common
from .lines import line_of, read_toml

HERE = Path(__file__).parent
SHIPPED = tuple(sorted(path.stem for path in HERE.glob("*.toml")))
RECIPE = "recipe.toml"  # what a run leaves in its folder
VERSION = "slimrank"  # the key that says who wrote a recipe
ALTERNATIVES = (BUDGETS, ("resize", "crop_pct"))  # of each at most one is given; a word takes the place of all of them


@dataclass(frozen=True, kw_only=True)
class RecipeOption:
    recipe: str | None = option(
        None, f"take options from a .toml file, or {', '.join(SHIPPED)}; what is given here goes before", metavar="FILE"
    )


def _tables() -> dict[str, dict[str, Option]]:
    """Every option that a recipe may hold, by table and name: not the network, which may be code, nor what downloads."""
    data = {name: one for name, one in options(DataSpec).items() if name not in ("seed", "download")}
    return {**tables(CompressOptions()), "data": data, "images": options(ImageSpec)}


TABLES = _tables()
HELD_BACK = {*options(Reading), *options(DataSpec), *options(Common), "checkpoint", "out", "recipe"}
STAYS = "{!r} stays on the command line: no file names code, weights or places to write to"
HELD_BACK -= {name for table in TABLES.values() for name in table}


def read_recipe(word: str) -> dict[str, Any]:
    """The options that a recipe gives, by name; `word` is one that ships, or a file.

    Raises SlimrankError, with the line, for what is no option, stands in another table, or has another type. Warns where
    another version of slimrank wrote it.
    """
    path = HERE / f"{word}.toml" if word in SHIPPED else Path(word)
    try:
        raw, text = read_toml(path)
    except SlimrankError as error:
        if path.suffix or path.parent.name:
            raise
        raise SlimrankError(f"no recipe {word!r}: those that ship are {', '.join(SHIPPED)}; or name a .toml file") from error
    return _Recipe(path.name, text, raw.pop(VERSION, __version__)).options(raw)


@dataclass(frozen=True)
class _Recipe:
    """A recipe's file name, text and the version that wrote it."""

    name: str
    text: str
    version: Any

    def fails(self, why: str, *path: str) -> SlimrankError:
        other = "" if self.version == __version__ else f" (it is of slimrank {self.version}, this is {__version__})"
        return SlimrankError(f"{self.name} line {line_of(self.text, *path)}: {why}{other}")

    def options(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(self.version, str):
            raise self.fails(f"{VERSION!r} is {_shown(self.version)}, must be the version that wrote it, in quotes", VERSION)
        found = {}
        for key, value in raw.items():
            if not isinstance(value, dict):
                if key in TABLES:
                    raise self.fails(f"{key!r} is a table; write [{key}], and its options below", key)
                found[key] = self.value("", key, value)
                continue
            if key in HELD_BACK:
                raise self.fails(STAYS.format(key), key)
            if key not in TABLES:
                raise self.fails(f"no table [{key}]; {_near(key, [name for name in TABLES if name])}", key)
            found |= {name: self.value(key, name, inner) for name, inner in value.items()}
        if self.version != __version__:
            warnings.warn(
                f"{self.name} is of slimrank {self.version}, this is {__version__}: the same options may give other figures",
                SlimrankWarning, stacklevel=2,
            )  # fmt: skip
        return found

    def value(self, table: str, name: str, value: Any) -> Any:
        path = (table, name) if table else (name,)
        place = f"in [{table}]" if table else "above the tables"
        if name not in TABLES[table]:
            if name in HELD_BACK:
                raise self.fails(STAYS.format(name), *path)
            home = next((other for other, known in TABLES.items() if name in known), None)
            where = "" if home is None else f"; it stands in [{home}]" if home else "; it stands above the tables"
            raise self.fails(f"no option {name!r} {place}{where or '; ' + _near(name, list(TABLES[table]))}", *path)
        one = TABLES[table][name]
        try:
            return _converted(one, value)
        except ValueError as error:
            raise self.fails(f"{name!r} {place} is {_shown(value)}, must be {error}", *path) from error


def _converted(one: Option, value: Any) -> Any:
    """A value of TOML as its option has it: of its type, or a text that is read as on the command line."""
    said = one.field.metadata["option"]
    hint = get_type_hints(one.owner)[one.field.name]
    if said["read"] and isinstance(value, str):
        try:
            return said["read"](value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{_kind(hint)}, or text as on the command line") from error
    try:
        converted = msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ValueError(_kind(hint)) from error
    if said["choices"] and converted not in said["choices"]:
        raise ValueError(f"one of {', '.join(said['choices'])}")
    return converted


PLAIN = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


def _kind(hint: Any) -> str:
    """A type of an option in words."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = set(get_args(hint)) - {types.NoneType} - ({int} if float in get_args(hint) else set())
        return " or ".join(map(_kind, sorted(kinds, key=str)))
    if get_origin(hint) is tuple:
        return 'a list of texts, as ["a", "b"]' if get_args(hint)[0] is str else "a list of numbers, as [1, 8]"
    return PLAIN[hint]


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name.replace("-", "_"), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def _shown(value: Any) -> str:
    """A value of TOML for an error, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, (str, list)) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def with_words(usual: Mapping[str, Any], recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name: those given as words, then the recipe's, then the usual ones."""
    replaced = {name for names in ALTERNATIVES if any(name in given for name in names) for name in names}
    return {**usual, **{name: value for name, value in recipe.items() if name not in replaced}, **given}


def written_recipe(checkpoint: Path, asked: CompressOptions, reading: Mapping[str, Any]) -> str:
    """The TOML text that repeats a `compress`: every option that is not None, and the command in a comment.

    `reading`: how the checkpoint was read; what of it may name code stands in the comment alone.
    """
    values = {**reading, **asked.to_dict()}
    lines = [f"# {line}" for line in _head(checkpoint, asked, reading)] + [f"{VERSION} = {_toml(__version__)}"]
    for table, known in TABLES.items():
        rows = [(name, values[name]) for name in known if values.get(name) is not None]
        if rows and (table != "data" or asked.data is not None):
            lines += [*(["", f"[{table}]"] if table else []), *(_row(name, value) for name, value in rows)]
    return "\n".join(lines) + "\n"


def _head(checkpoint: Path, asked: CompressOptions, reading: Mapping[str, Any]) -> list[str]:
    words = ["slimrank", "compress", str(checkpoint)]
    for name in ("model", "state_dict"):
        words += [f"--{name.replace('_', '-')}", reading[name]] if reading.get(name) else []
    for key, value in (reading.get("model_arg") or {}).items():
        words += ["--model-arg", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    command = shlex.join([*words, "--recipe", RECIPE, "--out", "AGAIN"])
    lines = ["Repeats this run, to the bit on the same CPU:", "  " + "".join(map(_printable, command))]
    if asked.cut.clocked or asked.head == "auto" or asked.int8:
        lines.append("Where the clock decides (`latency`, `timed`, `int8`, a faster `head`), another day may decide otherwise.")
    return lines


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _row(name: str, value: Any) -> str:
    row = f"{name} = {_toml(value)}"
    if any("\ud800" <= character <= "\udfff" for character in row):  # of a path that is not UTF-8, as TOML is
        return f"# {''.join(map(_printable, row))} cannot stand here; give it on the command line"
    return row


def _toml(value: Any) -> str:
    """A value in TOML: text, a truth, a number, or a list of them."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):  # TOML's strings are JSON's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
