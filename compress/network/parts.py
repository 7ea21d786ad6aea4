"""Which tensors of a file are a network's: found by the network's own keys, under whatever names they are nested or prefixed.

A file is read as one tree, in which the dots of a key and the nesting of its mappings are levels alike. A part of the tree
is a network's where the names agree level by level. A level that only wraps the next one (DataParallel's `module`,
torch.compile's `_orig_mod`, Lightning's `model`, anybody's own) is passed through, wherever it stands.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...errors import SlimrankError
from .state import Shape, State, extra, fits, optional

Tree = dict[str, Any]  # of trees and tensors; a network's, of trees and keys

DEPTH = 50  # of nesting; no file that holds a network comes near
LONGEST = 1000  # characters of a key, with as little need
MOST = 200_000  # lists and mappings in a file
AVERAGED = re.compile("ema|avg|average|swa|teacher|momentum", re.IGNORECASE)  # of equals the plain weights go first


class Nest(Tree):
    """A mapping of the file itself, as against the dots of its keys."""


@dataclass(frozen=True)
class Part:
    """A part of a file read as a network's weights.

    `place`: where in the file. `state`: tensors by the network's keys, and by their own where the network lacks them.
    `complete`: nothing is missing, too much or of another shape. `counters`: names of single numbers that were left out.
    `beside`: keys in the same mapping that belong to no complete part.
    """

    place: str
    state: State
    complete: bool
    counters: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def tree(value: Any) -> Tree:
    """Read mappings, lists and modules as a tree of tensors; what holds no tensor, and what holds itself, is left out, and
    nested tensors, which have no shape.

    Raises SlimrankError for what is nested too often: a few lists of lists can hold one another billions of times.
    """
    return _Reader().tree(value, ())


class _Reader:
    """Reads a tree, and counts the objects that it has gone into."""

    def __init__(self) -> None:
        self.gone_into = 0

    def tree(self, value: Any, above: tuple[int, ...]) -> Tree:
        """`above`: the objects that hold this one, by id."""
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if not isinstance(value, (Mapping, list, tuple)) or id(value) in above or len(above) > DEPTH:
            return {}
        self.gone_into += 1
        if self.gone_into > MOST:
            raise SlimrankError(f"the file holds more than {MOST:,} lists in one another; save model.state_dict() alone")
        above = (*above, id(value))
        found = Nest()
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            grown = inner if isinstance(inner, Tensor) else self.tree(inner, above)
            if not grown.is_nested if isinstance(grown, Tensor) else grown:
                _plant(found, str(key), grown)
        return found


def _plant(root: Tree, key: str, value: Any) -> None:
    *levels, leaf = key.split(".")
    if len(levels) > DEPTH or len(key) > LONGEST:
        return
    for level in levels:
        root = root.setdefault(level, {})
        if not isinstance(root, dict):  # a tensor's name is a level as well: no module has that
            return
    root[leaf] = value


def every(file: Tree) -> Iterator[Tensor]:
    """Every tensor of a file."""
    return (tensor for _, tensor in _leaves(file))


def under(file: Tree, name: str) -> Tree | None:
    """Find the part of a file at a place, as `ema` or `model.ema`; None where it has no such place."""
    return next((node for path, node in _nodes(file) if f".{path}".endswith(f".{name}")), None)


def parts(file: Tree, wanted: Mapping[str, Shape]) -> list[Part]:
    """Find every part of a file that a network could be filled with, the plain ones before averaged ones.

    `wanted`: shape of each of the network's tensors. Without a complete part the list holds the one that fits best; it is
    empty where the file holds no tensor.
    """
    matching = _Matching(wanted)
    nodes = [(path, node) for path, node in _nodes(file) if not path or 2 * _size(node) >= matching.least]
    found = [matching.part(path, node) for path, node in nodes]
    complete = [part for part in found if part.complete]
    if not complete:
        return [max(found, key=lambda part: matching.fitting(part.state))] if file else []
    taken = {id(tensor) for part in complete for tensor in part.state.values()}
    told = [_with_beside(file, part, taken) for part in complete]
    return sorted(told, key=lambda part: AVERAGED.search(part.place) is not None)


class _Matching:
    """A network's keys, looked for in nodes of a file's tree."""

    def __init__(self, wanted: Mapping[str, Shape]):
        self.wanted, self.known = wanted, dict[tuple[int, int], State]()
        self.network: Tree = {}
        self.least = sum(not optional(key) for key in wanted)
        for key in wanted:
            _plant(self.network, key, key)

    def fitting(self, state: State) -> int:
        return sum(key in self.wanted and fits(tensor, self.wanted[key]) for key, tensor in state.items())

    def part(self, path: str, node: Tree) -> Part:
        """Read a node as the network's weights: its own names are the network's, whatever wraps the levels below."""
        state = self._level(node, self.network)
        used = {id(tensor) for tensor in state.values()}
        rest = {key: tensor for key, tensor in _leaves(node) if id(tensor) not in used}
        older = {_undotted(key): key for key in rest}  # densenet's norm.1 was renamed norm1
        for key in self.wanted:
            if key not in state and _undotted(key) in older:
                state[key] = rest.pop(older[_undotted(key)])
        missing = [key for key in self.wanted if key not in state and not optional(key)]
        counters = [key for key, tensor in rest.items() if tensor.numel() <= 1]
        odd = {key: tensor for key, tensor in rest.items() if tensor.numel() > 1}
        complete = not missing and not any(map(extra, odd)) and self.fitting(state) == len(state)
        names = tuple(sorted({key.rpartition(".")[2] for key in counters}))
        return Part(path, {**state, **{k: v for k, v in odd.items() if k not in state}}, complete, names)

    def _level(self, node: Tree, network: Tree) -> State:
        """Match a node level by level; a level that only the network has is passed through where it holds everything."""
        found: State = {}
        for name, inner in network.items():
            below = node.get(name)
            if isinstance(inner, str) and isinstance(below, Tensor):
                found[inner] = below
            elif isinstance(inner, dict) and isinstance(below, dict):
                found |= self._best(below, inner)
        if not found and len(network) == 1:
            (inner,) = network.values()
            return self._level(node, inner) if isinstance(inner, dict) else found
        return found

    def _best(self, node: Tree, network: Tree) -> State:
        """Match a node, or the one below it that fits better: what is above wraps it."""
        pair = id(node), id(network)
        if pair not in self.known:
            found, size = self._level(node, network), _size(network)
            for below in node.values() if len(found) < size else ():
                if isinstance(below, dict) and 2 * _size(below) >= size:
                    found = max(found, self._best(below, network), key=self.fitting)
            self.known[pair] = found
        return self.known[pair]


def _with_beside(file: Tree, part: Part, taken: set[int]) -> Part:
    """Add to a part what its mapping holds beside it."""
    nest = at = file
    for level in part.place.split(".") if part.place else ():
        at = at[level]
        nest = at if isinstance(at, Nest) else nest
    others = ((key, tensor) for key, tensor in _leaves(nest, into_nests=False) if tensor.numel() > 1)
    return replace(part, beside=tuple(key for key, tensor in others if id(tensor) not in taken))


def _nodes(node: Tree, path: str = "") -> Iterator[tuple[str, Tree]]:
    """Every tree in a tree, itself first, with its place."""
    yield path, node
    for name, below in node.items():
        if isinstance(below, dict):
            yield from _nodes(below, f"{path}.{name}" if path else name)


def _leaves(node: Tree, path: str = "", into_nests: bool = True) -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree with its key."""
    for name, below in node.items():
        key = f"{path}.{name}" if path else name
        if not isinstance(below, dict):
            yield key, below
        elif into_nests or not isinstance(below, Nest):
            yield from _leaves(below, key, into_nests)


def _size(node: Tree) -> int:
    return sum(_size(below) if isinstance(below, dict) else 1 for below in node.values())


def _undotted(key: str) -> str:
    return key.replace(".", "")
