"""A network cut in two where its filters are read: what comes before does not depend on them and runs once.

The network is traced (torch.fx), BatchNorm is folded into the convs before it, and the graph is split at the layers that
read a group (layers.py: the places where `masked` zeroes). What the tracer cannot follow runs whole, every time: right,
and slow; `Split.whole` says so.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..network.resize import CONVS


class Site(nn.Module):
    """A layer that reads filters, each multiplied by its entry of `scale` ([players]; None: as it is).

    `player[channel]`: whose channel it is, -1 for nobody's. Where the layer is a plain conv or linear one, the weights are
    scaled instead of the activations, which costs nothing and is the same.
    """

    def __init__(self, layer: nn.Module, player: Tensor):
        super().__init__()
        self.layer: Any = layer
        self.player: Tensor
        self.register_buffer("player", player, persistent=False)
        self.scale: Tensor | None = None
        self.dense = isinstance(layer, nn.Linear) or (isinstance(layer, CONVS) and layer.groups == 1)
        self.axis = -1 if isinstance(layer, nn.Linear) else 1

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return self.layer(x)
        scale = torch.where(self.player >= 0, self.scale[self.player.clamp_min(0)], 1.0)
        if not self.dense:
            shape = [1] * x.dim()
            shape[self.axis] = -1
            return self.layer(x * scale.view(shape))
        weight = self.layer.weight * scale.view(1, -1, *[1] * (self.layer.weight.dim() - 2))
        return self.apply_weight(x, weight)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
        """The layer with another weight; without its bias if asked."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias if bias else None)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            kept = layer.bias if bias else None
            return layer._conv_forward(x, weight, kept)
        convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[layer.weight.dim() - 3]
        return convolve(x, weight, layer.bias if bias else None, layer.stride, layer.padding, layer.dilation, layer.groups)


FRESH = (*CONVS, nn.Linear, nn.modules.batchnorm._BatchNorm, Site)  # modules whose output is memory of their own
OUT_OF_PLACE = {F.relu: torch.relu, torch.relu_: torch.relu, operator.iadd: operator.add, operator.imul: operator.mul}
IN_PLACE = {torch.relu: torch.relu_, operator.add: operator.iadd, torch.add: operator.iadd}


@dataclass
class Split:
    """`before(images)` gives the tensors that cross over; `after(*crossing)` the logits, read through `sites`.

    `linear`: the one layer that reads the filters is a plain conv or linear layer; then the first crossing tensor is what
    it reads, and `tail(z, *crossing[1:])` gives the logits from its output z. `whole`: why
    nothing could be split off; empty where it could.
    """

    before: Callable[[Tensor], tuple[Tensor, ...]]
    after: Callable[..., Tensor]
    sites: list[Site]
    players: int
    linear: bool = False
    whole: str = ""
    logits: bool = False  # the reading layer is the classifier, nothing comes behind it
    tail: Callable[..., Tensor] | None = None

    def scale(self, value: Tensor | None) -> None:
        """Multiply the filters by `value` ([players]) from now on; None: by one."""
        for site in self.sites:
            site.scale = value


def players(channels: ChannelMap, layer: str) -> tuple[int, dict[str, Tensor]]:
    """Who plays, and where: the units of a layer's group at every layer that reads them.

    For the classifier's own name: the features that it reads, at the classifier alone.
    """
    if layer == channels.classifier:
        n = len(channels.reads[layer])
        return n, {layer: torch.arange(n)}
    group = channels.group(layer)
    first, last = group.offset, group.offset + group.units
    sites = {}
    for reader in channels.readers(group):
        units = channels.reads[reader]
        sites[reader] = torch.where((units >= first) & (units < last), units - first, -1)
    if not sites:
        raise SlimrankError(f"layer {group.name} cannot be masked: {group.why or 'no layer reads it'}")
    return group.units, sites


def split(model: nn.Module, channels: ChannelMap, layer: str, dtype: torch.dtype = torch.float32) -> Split:
    """Cut a copy of `model` (eval mode, frozen, BatchNorm folded, channels last) where a layer's filters are read."""
    n, sites = players(channels, layer)
    model = copy.deepcopy(model).eval().requires_grad_(False).to(dtype)
    try:
        traced = _trace(model)
    except Exception as error:  # fx raises whatever the model's forward raises on a proxy
        return _whole(model, n, sites, str(error))
    found = {node.target: node for node in traced.graph.nodes if node.op == "call_module"}
    if not set(sites) <= set(found):
        return _whole(model, n, sites, "a reader is hidden")
    made = {}
    for name, player in sites.items():
        made[name] = Site(traced.get_submodule(name), player.to(next(iter(model.parameters())).device))
        _replace(traced, name, made[name])
    readers = [found[name] for name in sites]
    dirty = set()
    for node in traced.graph.nodes:
        if node in readers or any(parent in dirty for parent in node.all_input_nodes):
            dirty.add(node)
    for node in reversed(traced.graph.nodes):  # sizes are taken anew: batches differ
        if _is_size(node) and any(user in dirty for user in node.users):
            dirty.add(node)
    if any(p.dim() == 4 for p in traced.parameters()):
        traced = traced.to(memory_format=torch.channels_last)
    clean = [node for node in traced.graph.nodes if node not in dirty and node.op != "get_attr"]
    crossing = [node for node in clean if any(user in dirty for user in node.users)]
    site = made[next(iter(sites))]
    source = readers[0].args[0]
    linear = len(sites) == 1 and site.dense and len(readers[0].args) == 1 and not readers[0].kwargs
    if linear:
        others = [n for n in crossing if n is not source or len([u for u in n.users if u in dirty]) > 1]
        crossing = [source, *others]
        tail = _graph(traced, [readers[0], *others], dirty - {readers[0]})
    return Split(
        before=_graph(traced, [n for n in traced.graph.nodes if n.op == "placeholder"], None, crossing),
        after=_graph(traced, list(dict.fromkeys(crossing)), dirty),
        sites=list(made.values()), players=n, linear=linear, logits=len(dirty) == 2, tail=tail if linear else None,
    )  # fmt: skip


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel")
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    return bool(node.target is getattr and node.args[1] == "shape") or all(_is_size(n) for n in node.all_input_nodes)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return hasattr(m, "slice_channels") or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph without the model's own in-place operations, BatchNorm folded into the convs before it."""
    traced = fx.GraphModule(model, _Tracer().trace(model))
    seen = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module: Any = traced.get_submodule(str(node.target))
            if node.target in seen and next(module.parameters(), None) is not None:
                raise ValueError(f"{node.target} is called twice")
            seen.add(node.target)
            if isinstance(module, nn.ReLU):
                node.op, node.target, node.kwargs = "call_function", torch.relu, {}
            elif getattr(module, "inplace", False):
                module.inplace = False
        elif node.op == "call_function":
            node.target = OUT_OF_PLACE.get(node.target, node.target)
            if node.target is torch.relu or node.kwargs.get("inplace"):
                node.args, node.kwargs = node.args[:1] if node.target is torch.relu else node.args, {}
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            raise ValueError(f"{node.target} changes a tensor in place")
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, conv = traced.get_submodule(str(node.target)), traced.get_submodule(str(source.target))
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and isinstance(conv, CONVS) and norm.running_mean is not None:
            _replace(traced, str(source.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    return traced


def _reuse(part: fx.GraphModule) -> None:
    """ReLU and sums overwrite what a layer has just made and nobody else reads; what came in from outside stays."""
    for node in part.graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_function" or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        layer = source.op == "call_module" and isinstance(part.get_submodule(str(source.target)), FRESH)
        if layer or (source.op == "call_function" and source.target in IN_PLACE.values()):
            two = len(node.args) == 2 and isinstance(node.args[1], fx.Node)
            if not node.kwargs and (two or node.target is torch.relu):
                node.target = IN_PLACE.get(node.target, node.target)


def _graph(traced: fx.GraphModule, inputs: list[fx.Node], keep: set | None, outputs: list[fx.Node] | None = None) -> nn.Module:
    """The part of a traced network from `inputs` to `outputs` (default: to its logits)."""
    graph, made = fx.Graph(), {}
    for node in inputs:
        made[node] = graph.placeholder(node.name)
    wanted = None
    if outputs is not None:
        wanted, stack = set(), [n for n in outputs if n not in made]
        while stack:
            node = stack.pop()
            if node not in wanted and node not in made:
                wanted.add(node)
                stack.extend(node.all_input_nodes)
    for node in traced.graph.nodes:
        if node in made or (wanted is not None and node not in wanted):
            continue
        if keep is not None and node not in keep and node.op != "get_attr":
            continue
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], made.__getitem__))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
    if outputs is not None:
        graph.output(tuple(made[n] for n in outputs))
    part = fx.GraphModule(traced, graph)
    graph.eliminate_dead_code()
    _reuse(part)
    part.recompile()
    return part


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(owner), leaf, module)


def _whole(model: nn.Module, n: int, sites: Mapping[str, Tensor], why: str) -> Split:
    made = []
    for name, player in sites.items():
        site = Site(model.get_submodule(name), player.to(next(iter(model.parameters())).device))
        _replace(model, name, site)
        made.append(site)
    return Split(lambda images: (images,), model, made, n, whole=" ".join(why.split())[:100] or "it cannot be traced")
