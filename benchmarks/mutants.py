"""Mutants of a source file: each differs from it in one place, by one of mutmut's operators."""

import ast
import importlib
import inspect
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import CodeRange, MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

LEFT_OUT = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise)  # no behaviour, or the words of an error


@dataclass(frozen=True)
class Mutant:
    """`source` is that of `path` with one place changed. `lines`: what a test must run to notice, the first line of the changed
    statement or, for a signature, of the function's body; `before`, `after`: the changed lines, without indentation."""

    path: str
    lines: range
    before: str
    after: str
    source: str
    nth: int  # of the mutants of its file that change these lines so

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.path, self.before, self.after, self.nth

    @property
    def names(self) -> list[str]:
        """What the changed statement of the file's own level defines."""
        body = ast.parse(self.source).body
        statement = next(s for s in body if s.lineno <= self.lines.start <= (s.end_lineno or s.lineno))
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            return [statement.name]
        return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def mutants(root: Path, path: str) -> Iterator[Mutant]:
    """All mutants of a file. mutmut's own walk leaves decorated functions out, which half of ours are."""
    source = (root / path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    places = _Places()
    wrapper.visit(places)
    begins = list(accumulate(map(len, source.splitlines(keepends=True)), initial=0))
    times: Counter[tuple[str, str]] = Counter()
    for where, text, lines in places.found:
        first, last = (begins[at.line - 1] + at.column for at in (where.start, where.end))
        before = source[begins[where.start.line - 1] : begins[where.end.line]]
        after = source[begins[where.start.line - 1] : first] + text + source[last : begins[where.end.line]]
        before, after = " ".join(before.split()), " ".join(after.split())
        if before != after:
            times[before, after] += 1
            yield Mutant(path, lines, before, after, source[:first] + text + source[last:], times[before, after])


class _Places(cst.CSTVisitor):
    """What the operators change: where, into what, and the lines that run it."""

    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self) -> None:
        super().__init__()
        self.module = cst.Module([])
        self.found: list[tuple[CodeRange, str, range]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, LEFT_OUT) or (isinstance(node, cst.SimpleString) and " " in node.value):
            return False
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                where, lines = self.get_metadata(PositionProvider, node), self._lines(node)
                self.found += [(where, self._text(mutated), lines) for mutated in operator(node)]
        return True

    def _text(self, node: cst.CSTNode) -> str:
        """Its code; a node's position leaves out the parentheses around it."""
        return self.module.code_for_node(node.with_changes(lpar=(), rpar=()) if hasattr(node, "lpar") else node).strip()

    def _lines(self, node: cst.CSTNode) -> range:
        """First to last line of the innermost statement without what is nested in it."""
        statement = node
        while not isinstance(statement, cst.SimpleStatementLine | cst.BaseCompoundStatement | cst.Module):
            statement = self.get_metadata(ParentNodeProvider, statement)
        where = self.get_metadata(PositionProvider, statement)
        if isinstance(statement, cst.FunctionDef):  # a default: every test that calls it
            where = self.get_metadata(PositionProvider, statement.body)
        elif isinstance(statement, cst.BaseCompoundStatement):
            own = self.get_metadata(PositionProvider, node)
            return range(min(where.start.line, own.start.line), own.end.line + 1)
        return range(where.start.line, where.end.line + 1)


def install(mutant: Mutant) -> bool:
    """Put a mutant into the modules that are loaded; True where its file cannot even be imported.

    Functions and methods get the mutant's code, so that whoever imported them runs it; constants are replaced wherever they
    went by the same name.
    """
    module = importlib.import_module("slimrank." + mutant.path.removesuffix(".py").replace("/", "."))
    new = types.ModuleType(module.__name__)
    new.__dict__.update({key: module.__dict__[key] for key in ("__package__", "__file__", "__spec__")})
    try:
        sys.modules[module.__name__] = new  # dataclasses look their module up
        exec(compile(mutant.source, str(module.__file__), "exec"), new.__dict__)
    except Exception:  # a mutant may raise anything
        return True
    finally:
        sys.modules[module.__name__] = module
    for name in mutant.names:
        old, value = module.__dict__[name], new.__dict__[name]
        if isinstance(old, type):
            for key, member in vars(value).items():
                if not key.startswith("__") or key in ("__init__", "__len__", "__str__", "__torch_dispatch__"):
                    _replace(old, key, vars(old).get(key), member)
        else:
            _replace(module, name, old, value)
    return False


def _replace(owner: Any, name: str, old: Any, new: Any) -> None:
    olds, news = _code(old), _code(new)
    if olds is None or news is None or olds.__code__.co_filename == "<string>":
        loaded = [m for key, m in sys.modules.items() if key.startswith("slimrank") and m.__dict__.get(name) is old]
        for place in [owner, *loaded]:
            setattr(place, name, new)
    else:
        olds.__code__, olds.__defaults__, olds.__kwdefaults__ = news.__code__, news.__defaults__, news.__kwdefaults__


def _code(value: Any) -> types.FunctionType | None:
    """The function behind decorators, a property or a method; None where there is none."""
    value = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
    return value if isinstance(value, types.FunctionType) and value.__name__ != "<lambda>" else None
