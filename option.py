"""An option, said once: a dataclass field with its default, its help and how the command line reads it.

Nothing heavy is imported here: every option of every verb is read before torch is.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
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
    positional: bool | str = False,
    table: str | None = None,
) -> Any:
    """Declare a dataclass field that the command line offers as well.

    `help`: what `--help` says; "{default}" in it becomes the verb's default. `flag`: only where it is not the field's
    name with dashes. `read`: text to value, only where the annotation does not tell (int, float, str, bool, tuples of
    these as comma-separated lists, each or None). `repeat`: the flag may be given again and again and fills a tuple.
    `positional`: no flag; a text says how many ("+", "2"). `table`: where it stands in a recipe (`tables`).
    """
    described = {
        "help": help, "flag": flag, "read": read, "metavar": metavar, "choices": choices, "repeat": repeat,
        "positional": positional, "table": table,
    }  # fmt: skip
    return field(default=default, metadata={"option": described})


def nested(
    default: Any,
    *,
    only: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    unasked: bool = False,
    table: str | None = None,
) -> Any:
    """Declare a field that is itself a dataclass of options; its default says the defaults.

    `only` or `without` choose which of its options are offered here. `unasked`: the parser's default of each is None, and
    where none is given the field is None, so that its owner can tell. `table`: where they stand in a recipe (`tables`).
    """
    described = {"only": only, "without": without, "unasked": unasked, "default": default, "table": table}
    return field(default=None if unasked else default, metadata={"nested": described})


@dataclass(frozen=True)
class Option:
    """One option of a tree of dataclasses: its field, its owner's class, and the default that it has there.

    `told`: the default for `--help`, where the parser's own is None so that what was not given can be told.
    """

    field: Field[Any]
    owner: type
    default: Any
    told: Any = None

    def unasked(self) -> "Option":
        return replace(self, default=None, told=self.default)


def options(tree: Any) -> dict[str, Option]:
    """Every option of an instance of a dataclass (or of the class, with its defaults) and those nested in it, by name.

    An option that stands in several places is one: the outermost says its default, then the first.
    """
    owner = tree if isinstance(tree, type) else type(tree)
    found = {
        one.name: Option(one, owner, one.default if tree is owner else getattr(tree, one.name))
        for one in fields(owner)
        if "option" in one.metadata
    }
    for one in fields(owner):
        if "nested" in one.metadata:
            for name, inner in options(_inside(tree, one)).items():
                if _offered(one, name):
                    found.setdefault(name, inner.unasked() if one.metadata["nested"]["unasked"] else inner)
    return found


def tables(tree: Any) -> dict[str, dict[str, Option]]:
    """The options of a tree by the table that each stands in where they are written down, "" being the top.

    A nested dataclass's own stand in its `table`, or where its owner's do; an option's own `table` goes before.
    """
    found: dict[str, dict[str, Option]] = {"": {}}
    for name, one in options(tree).items():
        found.setdefault(_table(tree, name), {})[name] = one
    return found


def _table(tree: Any, name: str) -> str:
    """The table of an option that a tree has, empty where nothing says one."""
    owner = tree if isinstance(tree, type) else type(tree)
    for one in fields(owner):
        if "option" in one.metadata and one.name == name:
            return str(one.metadata["option"]["table"] or "")
    for one in fields(owner):
        if "nested" in one.metadata and _offered(one, name) and name in options(inner := _inside(tree, one)):
            return _table(inner, name) or str(one.metadata["nested"]["table"] or "")
    raise KeyError(name)


def built(tree: Any, given: Mapping[str, Any]) -> Any:
    """A copy of an instance of a dataclass of options with the values of `given`, by option name, wherever they belong."""
    changes: dict[str, Any] = {}
    for one in fields(tree):
        if "option" in one.metadata and one.name in given:
            value = given[one.name]
            changes[one.name] = tuple(value) if isinstance(value, list) else value
        elif "nested" in one.metadata:
            inner = _inside(tree, one)
            mine = {name: given[name] for name in options(inner) if _offered(one, name) and name in given}
            if one.metadata["nested"]["unasked"]:
                mine = {name: value for name, value in mine.items() if value is not None}
                if not mine:
                    continue
            changes[one.name] = built(inner, mine)
    return replace(tree, **changes)


def flat(tree: Any) -> dict[str, Any]:
    """Every option's value by name, nested ones included; of equal names the outermost, then the first, counts."""
    return {name: option.default for name, option in options(tree).items()}


def _inside(tree: Any, one: Field[Any]) -> Any:
    value = None if isinstance(tree, type) else getattr(tree, one.name)
    return one.metadata["nested"]["default"] if value is None else value


def _offered(one: Field[Any], name: str) -> bool:
    only, without = one.metadata["nested"]["only"], one.metadata["nested"]["without"]
    return (not only or name in only) and name not in without
