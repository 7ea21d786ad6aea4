"""Mask units of a network, and watch what its layers read.

"Removed" means the network that surgery would leave, so `masked` zeroes a unit where the next layer reads it, after
BatchNorm and activation (algorithms.md, section 0). The test that gates the project: masked logits == sliced logits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from .groups import ChannelMap, Mix, stays
from .propagation import made_of_others, plain_name
from .rules import RULES


@contextmanager
def masked(model: nn.Module, channels: ChannelMap, gone: Tensor) -> Iterator[None]:
    """Zero the units in `gone` ([all units], boolean) wherever a layer reads them, and leave them out where an operator mixes
    channels: within the context, the pruned network."""
    with ExitStack() as stack:
        for name, units in channels.reads.items():
            keep = stays(units, gone)
            if bool(keep.all()):
                continue
            module = model.get_submodule(name)
            hook = _zeroing(keep, -1 if isinstance(module, nn.Linear) else 1)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        mixing = [mix for mix in channels.mixes if not all(bool(stays(units, gone).all()) for _, _, units in mix.reads)]
        if mixing:
            mode = stack.enter_context(_Mixing(mixing, gone))
            for module in model.modules():
                if hasattr(module, "slice_channels"):  # the trace has not looked into it
                    stack.callback(module.register_forward_pre_hook(mode.pause).remove)
                    stack.callback(module.register_forward_hook(mode.go_on).remove)
        yield


class _Mixing(TorchDispatchMode):
    """Let operators that mix channels run on those that stay."""

    def __init__(self, mixes: Sequence[Mix], gone: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = {(mix.operator, mix.number): mix.reads for mix in mixes}
        self.gone = gone
        self.calls: Counter[str] = Counter()
        self.paused = 0

    def pause(self, *_: object) -> None:
        self.paused += 1

    def go_on(self, *_: object) -> None:
        self.paused -= 1

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        if made_of_others(func, RULES):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        name = plain_name(func)
        self.calls[name] += 1
        given = list(args)
        for place, axis, units in self.reads.get((name, self.calls[name]), ()):
            given[place] = given[place].index_select(axis, stays(units, self.gone).nonzero().flatten().to(given[place].device))
        return func(*given, **(kwargs or {}))


@contextmanager
def captured(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what each layer read in the latest forward pass: within the context, its input tensor by the layer's name."""
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in layers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(_storing(inputs, name)).remove)
        yield inputs


def _zeroing(keep: Tensor, axis: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Make a forward pre-hook that zeroes the channels where `keep` is False."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        shape = [1] * x.dim()
        shape[axis] = -1
        return (x * keep.to(x).view(shape), *inputs[1:])

    return hook


def _storing(store: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Make a forward pre-hook that stores the layer's input under its name."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        store[name] = inputs[0]

    return hook
