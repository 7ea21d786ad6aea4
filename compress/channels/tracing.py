"""Which channels belong together, found by one forward pass that carries labels instead of numbers (propagation.py)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..network.forward import forward, logits_of
from ..network.resize import CONVS, TRANSPOSED
from .grouping import grouped
from .groups import ChannelMap
from .probe import probed
from .propagation import Propagation
from .rules import RULES


def channel_map(model: nn.Module, example: Tensor) -> ChannelMap:
    """Trace `model` (put in eval mode for the pass) on one example, [1, channels, height, width].

    Raises SlimrankError when the forward pass fails or returns anything but one tensor of logits, [1, classes].
    """
    trace = Propagation(model, RULES)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _self_slicing(trace), _running(trace), trace:
            logits = logits_of(model(example))
    except Exception:
        forward(model, example)  # where the network itself fails, it tells so
        raise
    finally:
        model.train(training)
    return probed(model, grouped(trace, logits), example)


@contextmanager
def _self_slicing(trace: Propagation) -> Iterator[None]:
    """Treat modules with `slice_channels` as one reader and one writer: inside them nothing is followed."""
    with ExitStack() as stack:
        for name, module in trace.model.named_modules():
            if hasattr(module, "slice_channels"):
                before, after = _hooks(trace, name)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def _running(trace: Propagation) -> Iterator[None]:
    """Let the trace know which conv or linear layers run: only what they read in their own forward() can be masked."""
    with ExitStack() as stack:
        for name, module in trace.model.named_modules():
            if isinstance(module, (*CONVS, *TRANSPOSED, nn.Linear)):
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: trace.running.update([name])).remove)
                stack.callback(module.register_forward_hook(lambda *_, name=name: trace.running.subtract([name])).remove)
        yield


Before = Callable[[nn.Module, tuple[Tensor, ...]], None]
After = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


def _hooks(trace: Propagation, name: str) -> tuple[Before, After]:
    """Make the hooks of one such module: pause and record what it reads, go on and record what it writes."""

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not trace.paused:
            trace.note(trace.reads, name, trace.per_channel(inputs[0], 1))
        trace.paused += 1

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        trace.paused -= 1
        trace.self_slicing.add(name)
        labels = trace.output(name, out.shape[1])
        trace.note(trace.writes, name, labels)
        trace.spread(labels, out)

    return before, after
