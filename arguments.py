"""Dataclasses of options -> argparse. Knows no option by name: everything is said at the field (option.py)."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from . import __version__
from .option import Option, options


@dataclass(frozen=True)
class Verb:
    """One verb of the command line: what runs it (its docstring is the help), and where its arguments are said.

    `takes`: classes, or instances with the verb's own defaults, of option dataclasses; `without`: options among these that
    it does not offer; `unasked`: those whose default here is None, so that what was not given can be told. `reads`: help of
    the checkpoint it reads; `writes`: of --out. Either may be optional (`may_...`), or --out have a default. `divides`: whether
    several processes (processes.py) may run it together.
    """

    run: Callable[[argparse.Namespace], tuple[dict[str, Any], str]]
    takes: tuple[Any, ...] = ()
    reads: str = ""
    may_read: str = ""
    writes: str = ""
    may_write: str = ""
    default_out: str | None = None
    without: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    divides: bool = False

    @property
    def options(self) -> dict[str, Option]:
        every: dict[str, Option] = {}
        for tree in self.takes:
            for name, one in options(tree).items():
                if name not in self.without:
                    silent = name in self.unasked and one.default is not False
                    every.setdefault(name, one.unasked() if silent else one)
        return every


STATUS = "Exit status: 0 done; 1 an error, in one line; 2 wrong usage; 3 an --expect that does not hold."


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}; `{self.prog} --help` lists what it takes\n")


def parser(verbs: Mapping[str, Verb], common: tuple[type, ...], *, given_only: bool = False) -> Parser:
    """The parser of every verb; its namespaces hold options by their fields' names, and the verb's name under `verb`.

    `common`: options that every verb takes. `given_only`: namespaces hold what was given, and no defaults.
    """
    top = Parser(prog="slimrank", description="Rank, cut, specialise, export and time CNN classifiers.", epilog=STATUS)
    top.add_argument("--version", action="version", version=f"slimrank {__version__}")
    each = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in verbs.items():
        target = each.add_parser(name, help=verb.run.__doc__, description=verb.run.__doc__)
        for option_name, one in _every(verb, common).items():
            _add(target, option_name, one, given_only)
        if verb.reads or verb.may_read:
            optional: dict[str, Any] = {"nargs": "?"} if verb.may_read else {}
            target.add_argument("checkpoint", type=Path, help=verb.reads or verb.may_read, **optional)
        if verb.writes or verb.may_write:
            target.add_argument(
                "--out", "-o", type=Path, required=bool(verb.writes) and verb.default_out is None, default=verb.default_out,
                help=verb.writes or verb.may_write,
            )  # fmt: skip
    return top


def flags(verbs: Iterable[Verb], common: tuple[type, ...]) -> dict[str, str]:
    """The flag of every parameter that some verb takes, by the parameter's name."""
    every = {name: _flags(name, one)[0] for verb in verbs for name, one in _every(verb, common).items()}
    return {name: flag for name, flag in every.items() if flag.startswith("--")} | {"out": "--out"}


def _every(verb: Verb, common: tuple[type, ...]) -> dict[str, Option]:
    shared = {name: one for tree in common for name, one in options(tree).items()}
    return {**shared, **{name: one for name, one in verb.options.items() if name not in shared}}


def _flags(name: str, one: Option) -> tuple[str, ...]:
    """Its flags; a positional has its name instead."""
    said = one.field.metadata["option"]
    if said["positional"]:
        return (name,)
    flag = said["flag"] or f"--{name.replace('_', '-')}"
    return (flag,) if isinstance(flag, str) else tuple(flag)


def _add(target: argparse.ArgumentParser, name: str, one: Option, given_only: bool) -> None:
    said = one.field.metadata["option"]
    hint = get_type_hints(one.owner)[one.field.name]
    default = None if one.default is MISSING else one.default
    words: dict[str, Any] = {
        "help": said["help"].replace("{default}", _shown(default if one.told is None else one.told)).replace("%", "%%") or None
    }
    if said["positional"]:
        count = said["positional"]
        several: dict[str, Any] = {} if count is True else {"nargs": int(count) if count.isdigit() else count}
        target.add_argument(name, type=_reader(hint, said), metavar=said["metavar"], **several, **words)
        return
    words |= {"dest": name, "default": argparse.SUPPRESS if given_only else default, "required": one.default is MISSING}
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    if bool in kinds:
        words.pop("required")
        action = "store_true" if one.default is False else argparse.BooleanOptionalAction
        target.add_argument(*_flags(name, one), action=action, **words)
        return
    words |= {"type": _reader(hint, said), "metavar": said["metavar"], "choices": said["choices"]}
    if said["repeat"]:
        words |= {"action": "append"}
        words.pop("choices")
        if default is not None and not given_only:
            words["default"] = list(default)
    target.add_argument(*_flags(name, one), **words)


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, (tuple, list)) else str(default)


def _reader(hint: Any, said: Mapping[str, Any]) -> Callable[[str], Any]:
    """What turns the words of an option into its value: as said, else by its annotation."""
    if said["read"]:
        reader: Callable[[str], Any] = said["read"]
        return reader
    if NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) in (tuple, list):
        element = get_args(hint)[0]
        return element if said["repeat"] or said["positional"] else _many(element)
    return Path if hint is Path else hint


def _many(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    read.__name__ = "comma-separated list"
    return read
