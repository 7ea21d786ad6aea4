"""An option, said once: a dataclass field with its default, its help and how the command line reads it.

Nothing heavy is imported here: every option of every verb is read before torch is.
"""

from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any


def option(
    default: Any,
    help: str = "",
    *,
    flag: str | tuple[str, ...] | None = None,
    read: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    repeat: bool = False,
) -> Any:
    """Declare a dataclass field that the command line offers as well.

    `help`: what `--help` says; "{default}" in it becomes the verb's default. `flag`: only where it is not the field's
    name with dashes. `read`: text to value, only where the annotation does not tell (int, float, str, bool, tuples of
    these as comma-separated lists, each or None). `repeat`: the flag may be given again and again and fills a tuple.
    """
    described = {
        "help": help, "flag": flag, "read": read, "metavar": metavar, "choices": choices, "repeat": repeat,
    }  # fmt: skip
    return field(default=default, metadata={"option": described})


def options(owner: type) -> dict[str, Field[Any]]:
    """The fields of a dataclass that were declared with `option`, by name, in order."""
    return {f.name: f for f in fields(owner) if "option" in f.metadata}
