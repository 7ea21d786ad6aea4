"""Calls of layers' operators, watched: which module runs, with which weight, and whether that weight is its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .resize import CONVS, TRANSPOSED

_CONV = ("stride", "padding", "dilation", "groups")
_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")
# operator -> the module that computes it and nothing else, and the names of its arguments behind input, weight and bias
OPERATORS: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    F.linear: (nn.Linear, ()),
    F.conv1d: (nn.Conv1d, _CONV),
    F.conv2d: (nn.Conv2d, _CONV),
    F.conv3d: (nn.Conv3d, _CONV),
    F.conv_transpose1d: (nn.ConvTranspose1d, _TRANSPOSED),
    F.conv_transpose2d: (nn.ConvTranspose2d, _TRANSPOSED),
    F.conv_transpose3d: (nn.ConvTranspose3d, _TRANSPOSED),
}
WEIGHTED = (*CONVS, nn.Linear, *TRANSPOSED)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its operator and no more: a forward() of the user's own may pad first."""
    return type(layer).forward in {kind.forward for kind in WEIGHTED}


@dataclass(frozen=True)
class Applied:
    """One call of a layer's operator. `within`: the names of the modules that were running, the innermost last."""

    within: tuple[str, ...]
    kind: type[nn.Module]
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    settings: dict[str, Any]


class Watch(TorchFunctionMode):
    """Within the context, `calls` collects the calls of layers' operators for which `wanted` holds."""

    def __init__(self, model: nn.Module, wanted: Callable[[Applied], bool] = lambda _call: True):
        super().__init__()
        self.model, self.wanted = model, wanted
        self.within: list[str] = []
        self.calls: list[Applied] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in OPERATORS:
            call = applied(tuple(self.within), func, args, kwargs or {})
            if self.wanted(call):
                self.calls.append(call)
        return func(*args, **(kwargs or {}))


def applied(within: tuple[str, ...], func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Applied:
    """Read a call of a layer's operator."""
    kind, names = OPERATORS[func]
    given = {**dict(zip(("input", "weight", "bias", *names), args, strict=False)), **kwargs}
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    return Applied(within, kind, x, weight, bias, given)


def sided(value: Any, sides: int) -> Any:
    """A setting of a conv, of each side."""
    each = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value
    return each * sides if isinstance(each, tuple) and len(each) == 1 else each


@contextmanager
def watched(model: nn.Module, wanted: Callable[[Applied], bool] = lambda _call: True) -> Iterator[Watch]:
    """Watch a network, or a part of it, run."""
    watch = Watch(model, wanted)

    def leave(_module: nn.Module, _inputs: object, _out: object) -> None:
        watch.within.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            enter = module.register_forward_pre_hook(lambda _m, _x, name=name: watch.within.append(name), prepend=True)
            stack.callback(enter.remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(watch)
        yield watch
