"""How labels pass through each operator: a dict from the operator's name to a plain function.

A rule reads the labels of the call's inputs and sets those of its output, and it ties or pins labels where the operator
asks for it. Rules run for calls with a labelled input only; those of layers run always.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..network.resize import CONVS
from .propagation import Call, Propagation, Rule, along, varies
from .ties import NONE


def keep(trace: Propagation, call: Call) -> None:
    """Keep every element where it is."""
    trace.labels[call.out] = trace.of(call.args[0])


def normalise(trace: Propagation, call: Call) -> None:
    """Let the parameters and statistics of BatchNorm and PReLU, one value a channel, follow the channels."""
    labels = trace.per_channel(call.args[0], 1)
    for tensor in call.args[1:5]:
        if isinstance(tensor, Tensor) and tensor.numel() > 1 and not trace.shrinks(tensor, 0, labels):
            trace.ties.pin(labels, f"{call.name} runs on tensors that are not parameters")
    keep(trace, call)


def pool(trace: Propagation, call: Call) -> None:
    """Mix positions of one channel, never channels."""
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    trace.spread(trace.per_channel(call.args[0], 1), out)


def reduce(trace: Propagation, call: Call) -> None:
    """Take a mean, sum or maximum over axes along which labels are the same; over other axes it mixes channels."""
    x, out = call.args[0], call.out
    labels = trace.labels[x]
    axes = call.argument(1, "dim")
    axes = [axes] if isinstance(axes, int) else axes or range(x.dim())
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        if varies(trace.labels[x], axis):
            return trace.give_up(call.name, [x], out)
        labels = labels.narrow(axis, 0, 1) if out.dim() == x.dim() else labels.select(axis, 0)
    trace.labels[out] = labels


def combine(trace: Propagation, call: Call) -> None:
    """Tie the labels that meet in one element of a sum or product."""
    sides = [_side(trace, x) for x in call.args[:2]]
    labelled = [side for side in sides if side is not None]
    if len(labelled) == 2:
        trace.ties.tie(labelled[0], labelled[1])
    trace.labels[call.out] = torch.broadcast_to(labelled[0], call.out.shape)


def _side(trace: Propagation, x: object) -> Tensor | None:
    """Find the labels of one side of a sum or product: an activation's own, fresh ones for a parameter with one value a
    channel (layer scale), NONE for another tensor; None for a single number, which meets every label alike."""
    labels = trace.of(x)
    if labels is not None or not isinstance(x, Tensor) or x.numel() <= 1:
        return labels
    wide = [axis for axis in range(x.dim()) if x.shape[axis] > 1]
    if len(wide) != 1 or id(x) not in trace.names:
        return torch.full(x.shape, NONE)
    labels = trace.ties.fresh(x.shape[wide[0]])
    trace.shrinks(x, wide[0], labels)
    return along(labels, wide[0], x.dim())


def concatenate(trace: Propagation, call: Call) -> None:
    """Concatenate the labels as the tensors are."""
    parts = [trace.every(part) for part in call.args[0]]
    trace.labels[call.out] = torch.cat(parts, *call.args[1:], **call.kwargs)


def pad(trace: Propagation, call: Call) -> None:
    """Give padded positions to their channel, padded channels to no filter."""
    x, widths = call.args[:2]
    if x.dim() > 3 and len(widths) <= 2 * (x.dim() - 2):
        trace.spread(trace.per_channel(x, 1), call.out)
    else:
        trace.labels[call.out] = torch.constant_pad_nd(trace.every(x), widths, NONE)


def move(trace: Propagation, call: Call) -> None:
    """Move the labels as the elements are moved."""
    _moved(trace, call.out, call.func(trace.labels[call.args[0]], *call.args[1:], **call.kwargs))


def view(trace: Propagation, call: Call) -> None:
    """Reshape the labels: expanded ones cannot be viewed as the activation can."""
    _moved(trace, call.out, trace.labels[call.args[0]].reshape(call.out.shape))


def pick(trace: Propagation, call: Call) -> None:
    """Pin channels that are picked by number: after a cut the number would mean another channel."""
    labels = trace.labels[call.args[0]]
    axes = call.argument(PICKS[call.name], "dim", call.kwargs.get("dims", 0))
    for axis in axes if isinstance(axes, (list, tuple)) else [axes]:
        if varies(labels, axis):
            trace.ties.pin(labels, f"forward() picks channels by number ({call.name})")
    move(trace, call)


def slice_(trace: Propagation, call: Call) -> None:
    """Pick, unless the slice takes everything."""
    (move if call.out.shape == call.args[0].shape else pick)(trace, call)


def chunk(trace: Propagation, call: Call) -> None:
    """Tie equal parts, which stay equal only if they shrink together."""
    labels = trace.labels[call.args[0]]
    parts = call.func(labels, *call.args[1:], **call.kwargs)
    if varies(labels, call.argument(2, "dim", 0)):
        if len({part.shape for part in parts}) > 1:
            trace.ties.pin(labels, "forward() chunks its channels into unequal parts")
        else:
            for other in parts[1:]:
                trace.ties.tie(parts[0], other)
    _moved(trace, call.out, parts)


def shuffle(trace: Propagation, call: Call) -> None:
    """Tie what shuffled channel groups hold at the same place: they stay groups of one size only if they shrink together."""
    labels = trace.labels[call.args[0]]
    shuffle_groups = call.argument(1, "groups")
    parts = labels.unflatten(1, (shuffle_groups, labels.shape[1] // shuffle_groups))
    trace.ties.tie(parts, parts[:, :1])
    move(trace, call)


def _moved(trace: Propagation, out: Any, moved: Any) -> None:
    """Set the labels of one or several outputs; channels split in two axes (channel shuffle) are tied along all but the
    last, for they can shrink along that one only."""
    pairs = zip(out, moved, strict=True) if isinstance(out, (list, tuple)) else [(out, moved)]
    for tensor, labels in pairs:
        wide = [axis for axis in range(labels.dim()) if varies(labels, axis)]
        for axis in wide[:-1]:
            trace.ties.tie(labels, labels.narrow(axis, 0, 1))
        trace.labels[tensor] = labels


def convolve(trace: Propagation, call: Call) -> None:
    """Give a conv's output fresh labels; a conv group goes as a whole: its inputs and outputs are one unit."""
    x, weight, out = call.args[0], call.args[1], call.out
    conv_groups = call.argument(6, "groups", 1)
    read = trace.per_channel(x, 1)
    layer = _layer(trace, weight, read, CONVS)
    if layer is None:
        return trace.spread(torch.full((out.shape[1],), NONE), out)
    if conv_groups > 1:
        rows = read.view(conv_groups, -1)
        trace.ties.tie(rows, rows[:, :1])
        written = rows[:, :1].expand(conv_groups, out.shape[1] // conv_groups).reshape(-1)
    else:
        written = trace.output(layer, out.shape[1])
        trace.shrinks(weight, 1, read)
    trace.shrinks(weight, 0, written)
    _record(trace, call, layer, read, written, out.shape[2:].numel() * weight.shape[2:].numel())
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
    """Name the module that owns a weight; without one the labels read are pinned."""
    name, _, leaf = trace.names.get(id(weight), "").rpartition(".")
    if leaf == "weight" and isinstance(trace.model.get_submodule(name), kinds):
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


KEEPS = """relu relu6 hardtanh silu hardswish hardsigmoid sigmoid gelu tanh leaky_relu elu selu celu softplus mish dropout
    feature_dropout alpha_dropout clone contiguous detach to _to_copy alias neg abs clamp clamp_min clamp_max sqrt exp
    type_as softsign hardshrink"""
POOLS = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool2d max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d"""
MOVES = """reshape flatten unflatten permute transpose t numpy_T unsqueeze squeeze expand movedim repeat flip pixel_shuffle
    pixel_unshuffle swapaxes tile"""
# Operators that count positions along an axis -> which of their arguments is that axis.
PICKS = {"select": 1, "narrow": 1, "index_select": 1, "unbind": 1, "split": 2, "split_with_sizes": 2, "roll": 2, "slice": 1}

RULES: dict[str, Rule] = {
    **dict.fromkeys(KEEPS.split(), keep),
    **dict.fromkeys(("batch_norm", "prelu"), normalise),
    **dict.fromkeys(POOLS.split(), pool),
    **dict.fromkeys(("mean", "amax", "sum"), reduce),
    **dict.fromkeys(("add", "sub", "mul", "div", "maximum", "minimum"), combine),
    "cat": concatenate,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(MOVES.split(), move),
    **dict.fromkeys(("view", "_unsafe_view"), view),
    **dict.fromkeys(PICKS, pick),
    "slice": slice_,
    "chunk": chunk,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shuffle),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolve),
    "linear": multiply,
}
