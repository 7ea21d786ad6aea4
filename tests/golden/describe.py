"""The command line's interface as users see it, read from the argparse parser. All knowledge of how it is built is here."""

import argparse
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypedDict

from slimrank.arguments import parser
from slimrank.cli import COMMON, VERBS

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class Verb(TypedDict):
    help: str | None
    description: str | None
    arguments: dict[str, dict[str, Json]]


def verbs() -> list[str]:
    return list(_parsers())


def describe(verb: str) -> Verb:
    """One verb: its help line, and for every argument what `--help` shows and what a script may rely on.

    An argument is named by its first option string, or by its destination where it is positional.
    """
    helps, parsers = _helps(), _parsers()
    arguments: dict[str, dict[str, Json]] = {}
    for action in parsers[verb]._actions:
        if not isinstance(action, argparse._HelpAction):
            arguments[action.option_strings[0] if action.option_strings else action.dest] = _argument(action)
    return {"help": helps[verb], "description": parsers[verb].description, "arguments": arguments}


def _argument(action: argparse.Action) -> dict[str, Json]:
    return {
        "options": list(action.option_strings),
        "dest": action.dest,
        "default": _json(action.default),
        "nargs": action.nargs,
        "repeats": isinstance(action, argparse._AppendAction),
        "required": action.required,
        "choices": None if action.choices is None else [_json(choice) for choice in action.choices],
        "metavar": _json(action.metavar),
        "help": action.help,
    }


def _json(value: object) -> Json:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable):
        return [_json(part) for part in value]
    raise TypeError(f"a default of type {type(value).__name__} cannot stand in the record")


@cache
def _subparsers() -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    return next(a for a in parser(VERBS, COMMON)._actions if isinstance(a, argparse._SubParsersAction))


def _parsers() -> dict[str, argparse.ArgumentParser]:
    return dict(_subparsers().choices)


def _helps() -> dict[str, str | None]:
    return {choice.dest: choice.help for choice in _subparsers()._choices_actions}
