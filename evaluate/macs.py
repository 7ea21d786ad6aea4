"""Multiply-adds and parameters, layer by layer.

One fused multiply-add is one MAC. Convolutions and matrix products are counted, by a formula each, from the tensors of
a real forward pass; biases, BatchNorm, activations and pooling are not, by the field's convention, and are listed with
the number of times they ran. A module that computes in its own way offers `macs(input_shape)`, MACs for one image.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def _conv(out: Tensor, args: tuple[Any, ...]) -> int:
    one_filter: Tensor = args[1][0]  # every output element sums over one
    return out.numel() * one_filter.numel()


FORMULAS: dict[str, Callable[[Tensor, tuple[Any, ...]], int]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose2d": lambda out, args: args[0].numel() * args[1][0].numel(),
    "linear": lambda out, args: out.numel() * args[1].shape[-1],
    "matmul": lambda out, args: out.numel() * args[0].shape[-1],
    "mm": lambda out, args: out.numel() * args[0].shape[-1],
    "bmm": lambda out, args: out.numel() * args[0].shape[-1],
    "addmm": lambda out, args: out.numel() * args[1].shape[-1],
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
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1].strip("_")
        if not self.silent:
            if name in FORMULAS:
                self.macs[self.where[-1]] += FORMULAS[name](out, args)
            else:
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
