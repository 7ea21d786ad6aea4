"""A network cut in two where a group's units are read: what comes before does not depend on them and runs once.

The network is traced (torch.fx), BatchNorm is folded into the convs before it, and the graph is split at the layers that
read the group (where `masked` of channels/groups.py zeroes). What torch.fx cannot trace runs whole for every coalition:
correct, and slow; `Split.whole` says so.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...clone import clone
from ..channels.groups import ChannelMap
from ..network.graph import out_of_place
from ..network.resize import CONVS
from .sites import Site, places

BATCHNORM = nn.modules.batchnorm._BatchNorm
FRESH = (*CONVS, nn.Linear, BATCHNORM, Site)  # modules whose output is memory of their own


def add_over(x: Tensor, y: Tensor | float) -> Tensor:
    """x + y, in the memory of x where the sum fits it."""
    shape = torch.broadcast_shapes(x.shape, y.shape) if isinstance(y, Tensor) else x.shape
    fits = torch.result_type(x, y) == x.dtype and shape == x.shape
    return x.add_(y) if fits else x + y


IN_PLACE: dict[Any, Any] = {torch.relu: torch.relu_, operator.add: add_over, torch.add: add_over}


@dataclass(frozen=True, kw_only=True)
class Split:
    """`before(images)` gives the tensors that cross over; `after(*crossing)` the logits, read through `sites`.

    `crossing`: their names; `onward(names)`: what computes them from those that cross over elsewhere, None where they do not
    suffice.

    `linear`: one layer alone reads the units and is a plain conv or linear layer. Then the first crossing tensor is what it
    reads, and `tail(z, *crossing[1:])` gives the logits from its output z; `logits`: that output is the logits already.
    `whole`: why the network could not be split, empty where it could.
    """

    before: Callable[[Tensor], tuple[Tensor, ...]]
    after: Callable[..., Tensor]
    sites: list[Site]
    units: int
    crossing: tuple[str, ...] = ()
    onward: Callable[[Sequence[str]], Callable[..., tuple[Tensor, ...]] | None] = lambda names: None
    tail: Callable[..., Tensor] | None = None
    logits: bool = False
    whole: str = ""

    @property
    def linear(self) -> bool:
        return self.tail is not None

    @property
    def lanes(self) -> int:
        """How many threads run it at a time: what was not traced may keep a state of its own, one linear layer is too short."""
        alone = self.whole or self.logits or self.sites[0].unit.device.type != "cpu"
        return 1 if alone else torch.get_num_threads()

    def scale(self, value: Tensor | None) -> None:
        """Multiply the units by `value` ([units]) from now on, in this thread; None: by one."""
        for site in self.sites:
            site.scale = value


def split(model: nn.Module, channels: ChannelMap, layer: str, dtype: torch.dtype = torch.float32) -> Split:
    """Cut a copy of `model` (eval mode, frozen, BatchNorm folded, channels last) where the units of a layer are read."""
    units, readers = places(channels, layer)
    model = clone(model).eval().requires_grad_(False).to(torch.promote_types(dtype, torch.float32))
    try:
        traced = _traced(model).to(dtype)  # BatchNorm is folded before precision is lost
    except Exception as error:  # fx raises whatever the model's forward raises on a proxy
        return _unsplit(model, units, readers, str(error))
    calls = {str(node.target): node for node in traced.graph.nodes if node.op == "call_module"}
    if hidden := [name for name in readers if name not in calls]:
        return _unsplit(model, units, readers, f"the trace does not call {', '.join(hidden)}")
    sites = _with_sites(traced, readers)
    reading = [calls[name] for name in readers]
    dirty = _depending_on(reading, traced)
    if any(p.dim() == 4 for p in traced.parameters()):
        traced = traced.to(memory_format=torch.channels_last)
    clean = [node for node in traced.graph.nodes if node not in dirty and node.op != "get_attr"]
    crossing = [node for node in clean if any(user in dirty for user in node.users)]
    tail = None
    if len(sites) == 1 and sites[0].dense and len(reading[0].args) == 1 and not reading[0].kwargs:
        source = reading[0].args[0]
        others = [n for n in crossing if n is not source or len([user for user in n.users if user in dirty]) > 1]
        assert isinstance(source, fx.Node)
        crossing = [source, *others]
        tail = _graph(traced, [reading[0], *others], dirty - {reading[0]})
    return Split(
        before=_graph(traced, [], None, crossing),
        after=_graph(traced, crossing, dirty),
        sites=sites, units=units, crossing=tuple(node.name for node in crossing), onward=partial(_onward, traced, crossing),
        tail=tail, logits=len(dirty) == 2,
    )  # fmt: skip


def _onward(traced: fx.GraphModule, crossing: Sequence[fx.Node], names: Sequence[str]) -> fx.GraphModule | None:
    """The part of a traced network from the nodes of these names to those that cross over, where nothing else is needed."""
    known = {node.name: node for node in traced.graph.nodes}
    inputs = {known[name]: known[name] for name in names if name in known}
    if len(inputs) < len(names) or any(node.op == "placeholder" for node in _ancestors(crossing, inputs)):
        return None
    return _graph(traced, list(inputs), None, crossing)


def _unsplit(model: nn.Module, units: int, readers: Mapping[str, Tensor], why: str) -> Split:
    sites = _with_sites(model, readers)
    why = " ".join(why.split())[:100] or "it cannot be traced"
    return Split(before=lambda images: (images,), after=model, sites=sites, units=units, whole=why)


def _with_sites(model: nn.Module, readers: Mapping[str, Tensor]) -> list[Site]:
    """Put a Site around every reader, in place."""
    device = next(iter(model.parameters())).device
    sites = []
    for name, unit in readers.items():
        site = Site(model.get_submodule(name), unit.to(device))
        _replace(model, name, site)
        sites.append(site)
    return sites


def _depending_on(reading: Sequence[fx.Node], traced: fx.GraphModule) -> set[fx.Node]:
    """Nodes behind the mask, and the tensor sizes that they use: batches differ in size from one side to the other."""
    dirty: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node in reading or any(parent in dirty for parent in node.all_input_nodes):
            dirty.add(node)
    for node in reversed(traced.graph.nodes):
        if _is_size(node) and any(user in dirty for user in node.users):
            dirty.add(node)
    return dirty


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function":
        return False
    return bool(node.target is getattr and node.args[1] == "shape") or all(_is_size(n) for n in node.all_input_nodes)


def _traced(model: nn.Module) -> fx.GraphModule:
    """The graph without the model's own in-place operations, BatchNorm folded into the convs before it."""
    traced = out_of_place(model)
    called: set[str] = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            if node.target in called and next(traced.get_submodule(node.target).parameters(), None) is not None:
                raise ValueError(f"{node.target} is called twice")
            called.add(node.target)
    _fold_batchnorm(traced)
    return traced


def _fold_batchnorm(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, conv = traced.get_submodule(str(node.target)), traced.get_submodule(str(source.target))
        if isinstance(norm, BATCHNORM) and isinstance(conv, CONVS) and norm.running_mean is not None:
            _replace(traced, str(source.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def _graph(
    traced: fx.GraphModule, inputs: Sequence[fx.Node], keep: set[fx.Node] | None, outputs: Sequence[fx.Node] | None = None
) -> fx.GraphModule:
    """The part of a traced network from `inputs` to `outputs` (default: to its logits), of the nodes in `keep` (None: all)."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"given_{i}") for i, node in enumerate(inputs)}
    needed = None if outputs is None else _ancestors(outputs, copied)
    for node in traced.graph.nodes:
        if node in copied or (needed is not None and node not in needed):
            continue
        if keep is not None and node not in keep and node.op != "get_attr":
            continue
        copied[node] = graph.node_copy(node, copied.__getitem__)
    if outputs is not None:
        graph.output(tuple(copied[node] for node in outputs))
    part = fx.GraphModule(traced, graph)
    graph.eliminate_dead_code()
    _reuse_memory(part)
    part.recompile()
    return part


def _ancestors(outputs: Sequence[fx.Node], inputs: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """Nodes that must be computed for `outputs` when `inputs` are given."""
    needed: set[fx.Node] = set()
    stack = [node for node in outputs if node not in inputs]
    while stack:
        node = stack.pop()
        if node not in needed and node not in inputs:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return needed


def _reuse_memory(part: fx.GraphModule) -> None:
    """Let ReLU and sums overwrite what a layer has just computed and nobody else reads; what came in from outside stays."""
    for node in part.graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_function" or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        layer = source.op == "call_module" and isinstance(part.get_submodule(str(source.target)), FRESH)
        if layer or (source.op == "call_function" and source.target in IN_PLACE.values()):
            two = len(node.args) == 2 and isinstance(node.args[1], fx.Node)
            if not node.kwargs and (two or node.target is torch.relu):
                node.target = IN_PLACE.get(node.target, node.target)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(owner), leaf, module)
