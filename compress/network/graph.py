"""A network as a graph of its operators, each of which leaves its inputs alone."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

OUT_OF_PLACE: dict[Any, Any] = {
    F.relu: torch.relu, torch.relu_: torch.relu, operator.iadd: operator.add, operator.imul: operator.mul,
}  # fmt: skip


class _ChannelwiseLeaves(fx.Tracer):
    """Keeps modules that map channels in their own way (`slice_channels`) as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return hasattr(m, "slice_channels") or super().is_leaf_module(m, module_qualified_name)


def out_of_place(model: nn.Module) -> fx.GraphModule:
    """Trace a network with torch.fx, its in-place operators made out-of-place; modules are shared and lose `inplace`.

    Raises ValueError for a method that changes a tensor in place, and whatever the forward pass raises on a proxy.
    """
    traced = fx.GraphModule(model, _ChannelwiseLeaves().trace(model))
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module: Any = traced.get_submodule(str(node.target))
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
    return traced
