"""Mask units of a network, and watch what its layers read.

"Removed" means the network that surgery would leave, so `masked` zeroes a unit where the next layer reads it, after
BatchNorm and activation (algorithms.md, section 0). The test that gates the project: masked logits == sliced logits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .groups import ChannelMap, stays


@contextmanager
def masked(model: nn.Module, channels: ChannelMap, gone: Tensor) -> Iterator[None]:
    """Zero the units in `gone` ([all units], boolean) wherever a layer reads them: within the context, the pruned network."""
    with ExitStack() as stack:
        for name, units in channels.reads.items():
            keep = stays(units, gone)
            if bool(keep.all()):
                continue
            module = model.get_submodule(name)
            hook = _zeroing(keep, -1 if isinstance(module, nn.Linear) else 1)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


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
