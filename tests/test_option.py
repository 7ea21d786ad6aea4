"""Options are said at dataclass fields; trees of them are read, built and flattened by name."""

from dataclasses import dataclass

import pytest

from slimrank.arguments import Verb, flags, parser
from slimrank.option import built, flat, nested, option, options, tables


@dataclass(frozen=True, kw_only=True)
class Clock:
    batch: tuple[int, ...] = option((1, 8), "batch sizes (default {default})")
    seed: int = option(0)


@dataclass(frozen=True, kw_only=True)
class Tree:
    clock: Clock = nested(Clock(batch=(4,)), without=("seed",))
    silent: Clock | None = nested(Clock(), only=("batch",), unasked=True)
    protect: tuple[str, ...] = option((), repeat=True)
    deep: bool | None = option(None)
    seed: int = option(3)
    plain: int = 5


def test_the_outermost_says_the_default():
    assert {name: one.default for name, one in options(Tree()).items()} == {
        "protect": (), "deep": None, "seed": 3, "batch": (4,),
    }  # fmt: skip
    assert flat(Tree(seed=7))["seed"] == 7


def test_built_puts_each_value_where_it_belongs():
    tree = built(Tree(), {"batch": (2,), "seed": 9, "protect": ["a", "b"], "unknown": 1})
    assert tree == Tree(clock=Clock(batch=(2,)), silent=Clock(batch=(2,)), protect=("a", "b"), seed=9)
    assert built(Tree(), {"batch": None}).silent is None  # nothing of it was given


@dataclass(frozen=True, kw_only=True)
class Written:
    tree: Tree = nested(Tree(), without=("deep",), table="grow")
    clock: Clock = nested(Clock(), only=("batch",))
    deep: bool = option(True, table="root")
    seed: int = option(3)


def test_tables_say_where_an_option_is_written_down():
    found = {table: set(known) for table, known in tables(Written()).items()}
    assert found == {"": {"seed"}, "root": {"deep"}, "grow": {"batch", "protect"}}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--batch", "1,2"], "batch", (1, 2)),
        (["--protect", "a", "--protect", "b"], "protect", ["a", "b"]),
        (["--no-deep"], "deep", False),
        ([], "deep", None),
        ([], "batch", (4,)),
    ],
)
def test_the_parser_reads_what_the_annotation_says(words, name, value):
    verbs = {"grow": Verb(lambda args: ({}, ""), (Tree,))}
    assert getattr(parser(verbs, ()).parse_args(["grow", *words]), name) == value
    assert flags(verbs.values(), ())["protect"] == "--protect"
