"""Multiply-adds and parameters, layer by layer.

One fused multiply-add is one MAC. Convolutions and matrix products are counted, by a formula each, from the tensors of a real
forward pass, an operation made of others by its parts; biases, BatchNorm, activations and pooling are not, by the field's
convention, and are listed with the number of times they ran. A module that computes in its own way offers
`macs(input_shape)`, MACs for one image.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def _convolution(out: Tensor, args: tuple[Any, ...]) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    summed = x if transposed else out  # every element meets one filter
    return int(summed.numel() * weight[0].numel())


def _attention(out: Tensor, args: tuple[Any, ...]) -> int:
    query, key = args[:2]
    return int(query.numel() + out.numel()) * int(key.shape[-2])  # scores, and the mean of values


FORMULAS: dict[str, Callable[[Tensor, tuple[Any, ...]], int]] = {
    "convolution": _convolution,
    "linear": lambda out, args: out.numel() * args[1].shape[-1],
    "matmul": lambda out, args: out.numel() * args[0].shape[-1],
    "mm": lambda out, args: out.numel() * args[0].shape[-1],
    "bmm": lambda out, args: out.numel() * args[0].shape[-1],
    "addmm": lambda out, args: out.numel() * args[1].shape[-1],
    "baddbmm": lambda out, args: out.numel() * args[1].shape[-1],
    "mv": lambda out, args: args[0].numel(),
    "dot": lambda out, args: args[0].numel(),
    "bilinear": lambda out, args: out.numel() * (args[2][0].numel() + args[0].shape[-1]),
    "scaled_dot_product_attention": _attention,
}


@dataclass(frozen=True)
class LayerMacs:
    """MACs of one image and parameters of one layer."""

    macs: int
    params: int


@dataclass(frozen=True)
class Macs:
    """MACs of one image and parameters, total and by layer; `uncounted`: how often operations without a formula ran."""

    macs: int
    params: int
    layers: dict[str, LayerMacs]
    uncounted: dict[str, int]

    def __str__(self) -> str:
        rows = [f"  {name:32} {layer.macs:14,} {layer.params:12,}" for name, layer in self.layers.items()]
        note = ", ".join(f"{op} x{n}" for op, n in self.uncounted.items())
        total = f"  {'total':32} {self.macs:14,} {self.params:12,}"
        return "\n".join([f"  {'layer':32} {'MACs':>14} {'parameters':>12}", *rows, total, f"  not counted: {note}"])


class _Counter(TorchDispatchMode):
    """Counts the operations of a forward pass; `where`: the modules that are running, innermost last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where: list[str] = [""]
        self.macs: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.silent = 0  # modules that are running and count themselves

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1].strip("_")
        if self.silent or name not in FORMULAS:
            return self._parts(name, func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        self.macs[self.where[-1]] += FORMULAS[name](out, args)
        return out

    def _parts(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation without a formula; one made of others (einsum, 1d convolutions) is counted by its parts, and listed
        by its own name where none of them has a formula."""
        if self.silent:
            return func(*args, **kwargs)
        macs, uncounted = self.macs.total(), self.uncounted.copy()
        with self:
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        if self.macs.total() == macs:
            self.uncounted = uncounted
            self.uncounted[name] += 1
        return out


def count(model: nn.Module, shape: tuple[int, ...]) -> Macs:
    """Count one image of `shape` [channels, height, width]; the model runs once, in eval mode."""
    counter = _Counter()
    training = model.training
    parameter = next(model.parameters(), torch.empty(0))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            own = hasattr(module, "macs")

            def enter(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name, own: bool = own) -> None:
                counter.where.append(name)
                if own:
                    counter.silent += 1
                    counter.macs[name] += module.macs(tuple(inputs[0].shape[1:]))  # type: ignore[operator]

            def leave(_module: nn.Module, _inputs: Any, _out: Any, own: bool = own) -> None:
                counter.where.pop()
                counter.silent -= own

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        model.eval()
        fused = torch.backends.mha.get_fastpath_enabled()  # one kernel of a whole attention layer, which cannot be counted
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.inference_mode(), counter:
            model(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))
    model.train(training)
    layers = {}
    for name, module in model.named_modules():
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if params or counter.macs[name]:
            layers[name] = LayerMacs(counter.macs[name], params)
    return Macs(
        macs=sum(counter.macs.values()),
        params=sum(p.numel() for p in model.parameters()),
        layers=layers,
        uncounted=dict(counter.uncounted.most_common()),
    )
