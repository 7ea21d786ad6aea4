"""Forward passes that stop at every layer: nothing that was computed runs again, and no more is kept than is still needed."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import SlimrankError
from ...files import Scratch
from ..network.graph import out_of_place

Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Program:
    """A network's operators in the order in which they are run: before each layer, all that does not wait for it.

    `layers[name]`: the place of a layer's only call in `nodes`; `twice`: layers that are called more than once.
    """

    graph: fx.GraphModule
    nodes: list[fx.Node]
    layers: dict[str, int]
    twice: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[str]) -> "Program":
        """Trace `model` in place (network/graph.py); `layers`: names of the modules to stop at. Raises as the tracer does."""
        graph = out_of_place(model)
        calls = [node.target for node in graph.graph.nodes if node.op == "call_module" and node.target in set(layers)]
        nodes = _ordered(graph.graph, set(calls))
        places = {str(node.target): i for i, node in enumerate(nodes) if node.op == "call_module" and node.target in calls}
        twice = frozenset(str(name) for name in calls if calls.count(name) > 1)
        return cls(graph, nodes, {name: i for name, i in places.items() if name not in twice}, twice)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None where it calls none."""
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _ordered(graph: fx.Graph, layers: set[object]) -> list[fx.Node]:
    """Sort the nodes so that each layer comes as late, and everything else as early, as the order of layers allows."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    waits = {node: len(node.all_input_nodes) for node in place}

    def key(node: fx.Node) -> tuple[bool, int]:
        return (node.op == "call_module" and node.target in layers) or node.op == "output", place[node]

    ready = [(key(node), place[node], node) for node, n in waits.items() if n == 0]
    heapq.heapify(ready)
    done: list[fx.Node] = []
    while ready:
        node = heapq.heappop(ready)[2]
        done.append(node)
        for user in node.users:
            waits[user] -= 1
            if waits[user] == 0:
                heapq.heappush(ready, (key(user), place[user], user))
    return done


@dataclass
class Store:
    """Values of one chunk of images each; beyond `memory` bytes they lie in files of a temporary folder."""

    memory: int
    held: int = 0
    _folder: Scratch = field(default_factory=Scratch)
    _kept: dict[object, tuple[Values, int]] = field(default_factory=dict)

    def put(self, key: object, values: Values) -> None:
        size = sum(value.numel() * value.element_size() for value in values.values() if isinstance(value, Tensor))
        if self.held + size > self.memory:
            tensors = {i: value for i, value in enumerate(values.values()) if isinstance(value, Tensor)}
            try:
                torch.save(tensors, self._file(key))
            except (OSError, RuntimeError) as error:  # torch's own writer raises the latter where a disk is full
                raise SlimrankError(
                    f"cannot keep activations in {self._folder.name} ({str(error).splitlines()[0]}); free space there, or give "
                    f"more `memory` than {self.memory:,} bytes"
                ) from error
            values = {node: i if i in tensors else value for i, (node, value) in enumerate(values.items())}
            size = -1
        else:
            self.held += size
        self._kept[key] = values, size

    def take(self, key: object) -> Values:
        values, size = self._kept.pop(key)
        if size >= 0:
            self.held -= size
            return values
        tensors = torch.load(self._file(key), weights_only=True)
        return {node: tensors.get(i, value) for i, (node, value) in enumerate(values.items())}

    def _file(self, key: object) -> Path:
        return Path(self._folder.name) / str(key)


class Prefix:
    """One network's forward pass over chunks of images, as far as it has come. `program`: what is run."""

    def __init__(self, program: Program, store: Store, name: str):
        self.program, self.store, self.name = program, store, name
        self.place = 0
        last = {node: i for i, user in enumerate(program.nodes) for node in user.all_input_nodes}
        self._dies: dict[int, list[fx.Node]] = {}
        for node, i in last.items():
            self._dies.setdefault(i, []).append(node)
        self._interpreter = fx.Interpreter(program.graph, garbage_collect_values=False)
        self._image = next(node for node in program.nodes if node.op == "placeholder")

    def begin(self, chunk: int, images: Tensor) -> None:
        """Take in a chunk of images, before anything is run."""
        self.keep(chunk, {self._image: images})

    def advance(self, chunk: int, until: int) -> Values:
        """Run a chunk on to the node at `until`, which is not run. What comes back goes to `keep`; after the last chunk,
        `place` is moved on to `until`."""
        values = self.store.take((self.name, chunk))
        self._interpreter.env = values
        for i in range(self.place, until):
            node = self.program.nodes[i]
            if node.op != "placeholder":
                values[node] = self._interpreter.run_node(node)
            elif node not in values:
                values[node] = node.args[0] if node.args else None
            for dead in self._dies.get(i, ()):
                values.pop(dead, None)
            if not node.users:
                values.pop(node, None)
        return values

    def keep(self, chunk: int, values: Values) -> None:
        self.store.put((self.name, chunk), values)
