"""How labels pass through layers: convs, transposed convs, linear layers, and norms with one value a channel."""

import torch
from torch import Tensor, nn

from ..network.resize import CONVS, TRANSPOSED
from .propagation import Call, Propagation, Rule, varies
from .ties import NONE


def normalise(trace: Propagation, call: Call) -> None:
    """Let the parameters and statistics of BatchNorm and PReLU, one value a channel, follow the channels."""
    labels = trace.per_channel(call.args[0], 1)
    for tensor in call.args[1:5]:
        if isinstance(tensor, Tensor) and tensor.numel() > 1 and not trace.shrinks(tensor, 0, labels):
            trace.ties.pin(labels, f"{call.name} runs on tensors that are not parameters")
    trace.labels[call.out] = trace.of(call.args[0])


def normalise_groups(trace: Propagation, call: Call) -> None:
    """Tie the channels of each of GroupNorm's groups: a group has its own statistics, and goes or stays as a whole."""
    x, norm_groups = call.args[0], call.args[1]
    labels = trace.per_channel(x, 1)
    rows = labels.view(norm_groups, -1)
    tensors = [tensor for tensor in (call.argument(2, "weight"), call.argument(3, "bias")) if tensor is not None]
    followed = [trace.shrinks(tensor, 0, labels) for tensor in tensors]
    if not followed or not all(followed):
        trace.ties.pin(labels, "GroupNorm has no parameters that would tell how many groups are left")
    trace.ties.tie(rows, rows[:, :1])
    trace.labels[call.out] = trace.of(x)


def normalise_shape(trace: Propagation, call: Call) -> None:
    """Keep the labels behind a LayerNorm over positions; one over channels mixes them."""
    x = call.args[0]
    if any(varies(trace.labels[x], x.dim() - 1 - axis) for axis in range(len(call.args[1]))):
        return trace.give_up(call.name, [x], call.out)
    trace.labels[call.out] = trace.of(x)


def convolve(trace: Propagation, call: Call) -> None:
    """Give a conv's output fresh labels; a conv group goes as a whole: its inputs and outputs are one unit."""
    _convolve(trace, call, CONVS, call.argument(6, "groups", 1), outputs=0, positions=call.out)


def convolve_back(trace: Propagation, call: Call) -> None:
    """Give a transposed conv's output fresh labels; its weight is [in, out / groups, ...]."""
    _convolve(trace, call, TRANSPOSED, call.argument(6, "groups", 1), outputs=1, positions=call.args[0])


def _convolve(
    trace: Propagation, call: Call, kinds: tuple[type[nn.Module], ...], conv_groups: int, outputs: int, positions: Tensor
) -> None:
    """Label what a conv gives. `outputs`: the axis of its weight that is its output channels, of a conv without groups;
    `positions`: the one of its input and output that each kernel is applied at every position of."""
    x, weight, out = call.args[0], call.args[1], call.out
    read = trace.per_channel(x, 1)
    layer = _layer(trace, weight, read, kinds)
    if layer is None:
        return trace.spread(torch.full((out.shape[1],), NONE), out)
    if conv_groups > 1:
        rows = read.view(conv_groups, -1)
        trace.ties.tie(rows, rows[:, :1])
        written = rows[:, :1].expand(conv_groups, out.shape[1] // conv_groups).reshape(-1)
        trace.shrinks(weight, 0, written if outputs == 0 else read)
    else:
        written = trace.output(layer, out.shape[1])
        trace.shrinks(weight, 1 - outputs, read)
        trace.shrinks(weight, outputs, written)
    _record(trace, call, layer, read, written, positions.shape[2:].numel() * weight.shape[2:].numel())
    trace.spread(written, out)


def multiply(trace: Propagation, call: Call) -> None:
    """Give a linear layer's output fresh labels along the last axis."""
    x, weight, out = call.args[0], call.args[1], call.out
    read = trace.per_channel(x, x.dim() - 1)
    layer = _layer(trace, weight, read, (nn.Linear,))
    if layer is None:
        return trace.spread(torch.full((out.shape[-1],), NONE), out, out.dim() - 1)
    written = trace.output(layer, out.shape[-1])
    trace.shrinks(weight, 0, written)
    trace.shrinks(weight, 1, read)
    _record(trace, call, layer, read, written, out.numel() // out.shape[-1])
    trace.spread(written, out, out.dim() - 1)


def _layer(trace: Propagation, weight: Tensor, read: Tensor, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Name the module that owns a weight; the labels read are pinned without one, and where it is not called itself."""
    name, _, leaf = trace.names.get(id(weight), "").rpartition(".")
    if leaf == "weight" and isinstance(trace.model.get_submodule(name), kinds):
        if not trace.running[name]:
            trace.ties.pin(read, f"the weight of {name} is read outside its own forward()")
        return name
    trace.ties.pin(read, "a weight outside nn.Conv and nn.Linear reads it")
    return None


def _record(trace: Propagation, call: Call, layer: str, read: Tensor, written: Tensor, macs_per_pair: int) -> None:
    """Record what a call of a layer reads and writes, and its multiply-adds per input-output channel pair."""
    bias = call.argument(2, "bias")
    if bias is not None:
        trace.shrinks(bias, 0, written)
    trace.note(trace.reads, layer, read)
    trace.note(trace.writes, layer, written)
    trace.positions[layer] = trace.positions.get(layer, 0) + macs_per_pair


LAYER_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolve),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), convolve_back),
    "linear": multiply,
    **dict.fromkeys(("batch_norm", "instance_norm", "prelu"), normalise),
    "group_norm": normalise_groups,
    "layer_norm": normalise_shape,
}
