"""A network as a graph of its operators, each of which leaves its inputs alone."""

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .positional import first_keyword

OUT_OF_PLACE: dict[Any, Any] = {F.relu: torch.relu, torch.relu_: torch.relu} | {
    getattr(operator, f"i{name.strip('_')}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
}


PLAIN: dict[Any, type[nn.Module]] = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d, F.linear: nn.Linear}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")  # of these operators, in order


class _ChannelwiseLeaves(fx.Tracer):
    """Keeps modules that map channels in their own way (`slice_channels`) as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return hasattr(m, "slice_channels") or super().is_leaf_module(m, module_qualified_name)


def out_of_place(model: nn.Module) -> fx.GraphModule:
    """Trace a network with torch.fx, its in-place operators made out-of-place; modules are shared and lose `inplace`.

    A layer of the user's own class, which torch.fx goes into, is one call as well where it computes a plain operator.

    Raises ValueError for a method that changes a tensor in place, and whatever the forward pass raises on a proxy.
    """
    traced = fx.GraphModule(model, _ChannelwiseLeaves().trace(model))
    _call_layers(traced)
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module: Any = traced.get_submodule(str(node.target))
            if keyword := first_keyword(module, node.args, node.kwargs):
                node.args, node.kwargs = (node.kwargs[keyword],), {k: v for k, v in node.kwargs.items() if k != keyword}
            if isinstance(module, nn.ReLU):
                node.op, node.target = "call_function", torch.relu
            elif getattr(module, "inplace", False):
                module.inplace = False
        elif node.op == "call_function":
            _leave_inputs(node)
        elif node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
            raise ValueError(f"{node.target} changes a tensor in place")
    traced.recompile()
    return traced


def _leave_inputs(node: fx.Node) -> None:
    """Make a function the one that leaves its inputs alone. Raises ValueError where there is none."""
    function: Any = node.target
    name = getattr(function, "__name__", "")
    changing = "out" in node.kwargs or (name.endswith("_") and not hasattr(operator, name))  # as relu_, not as operator.and_
    node.target = OUT_OF_PLACE.get(function) or (changing and getattr(F, name.rstrip("_"), None)) or function
    if changing and node.target is function:
        raise ValueError(f"{name} changes a tensor in place")
    if node.target is torch.relu:
        node.args, node.kwargs = (node.args or (node.kwargs["input"],))[:1], {}
        return
    try:
        given = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # an operator of C, none of which takes `inplace`
        return
    if given.arguments.get("inplace"):
        given.arguments["inplace"] = False
        node.args, node.kwargs = given.args, given.kwargs


def _call_layers(traced: fx.GraphModule) -> None:
    """Call a layer as a module where its operator is written out, as in a conv class that pads first; what else its forward()
    does stays in front. The module holds the layer's own weight and bias, under the same names."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or node.target not in PLAIN:
            continue
        given = {**dict(zip(ARGUMENTS, node.args, strict=False)), **node.kwargs}
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        name = str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
        if not name or (bias is not None and getattr(bias, "target", None) != f"{name}.bias"):
            continue
        traced.set_submodule(name, _plain(PLAIN[node.target], traced.get_submodule(name), bias is not None, given))
        node.op, node.target, node.args, node.kwargs = "call_module", name, (x,), {}
    traced.graph.eliminate_dead_code()


def _plain(kind: type[nn.Module], layer: nn.Module, biased: bool, settings: dict[str, Any]) -> nn.Module:
    """Make the plain layer with another one's tensors and submodules; `settings`: stride, padding, dilation, groups."""
    weight = layer.get_parameter("weight")
    channels = weight.shape[1] * settings.get("groups", 1)
    sizes: tuple[Any, ...] = (channels, len(weight)) if kind is nn.Linear else (channels, len(weight), tuple(weight.shape[2:]))
    plain = kind(*sizes, bias=biased, device="meta", **settings)
    plain.register_parameter("weight", weight)
    plain.register_parameter("bias", layer.get_parameter("bias") if biased else None)
    for name, child in layer.named_children():
        plain.add_module(name, child)
    return plain.train(layer.training)
