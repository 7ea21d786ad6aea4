"""How labels pass through each operator: a dict from the operator's name to a plain function.

A rule reads the labels of the call's inputs and sets those of its output, and it ties or pins labels where the operator
asks for it. Rules run for calls with a labelled input only; those of layers run always.
"""

from typing import Any

import torch
from torch import Tensor

from .layer_rules import LAYER_RULES
from .propagation import POINTWISE, Call, Propagation, Rule, along, tensors_in, varies
from .ties import NONE


def keep(trace: Propagation, call: Call) -> None:
    """Keep every element where it is."""
    for out in _outputs(call):
        if out.shape == call.args[0].shape:
            trace.labels[out] = trace.of(call.args[0])


def pool(trace: Propagation, call: Call) -> None:
    """Mix positions of one channel, never channels."""
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    trace.spread(trace.per_channel(call.args[0], 1), out)


def reduce(trace: Propagation, call: Call) -> None:
    """Take a mean, maximum or norm over axes along which labels are the same; over channels, of those that are left."""
    x = call.args[0]
    outs = [out for out in _outputs(call) if out.is_floating_point()]
    labels = trace.labels[x]
    axes = call.argument(DIM.get(call.name, 1), "dim")
    axes = [axes] if isinstance(axes, int) else axes or range(x.dim())
    mixed = [axis for axis in axes if varies(labels, axis)]
    if mixed:
        if len(mixed) > 1 or not trace.mix(call, (0, mixed[0])):
            trace.give_up(call.name, [x], call.out)
        return
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        labels = labels.narrow(axis, 0, 1) if outs[0].dim() == x.dim() else labels.select(axis, 0)
    for out in outs:
        trace.labels[out] = labels


def run_along(trace: Propagation, call: Call) -> None:
    """Run along an axis (softmax, cumulative sum, sort): channels are mixed where that is theirs."""
    x = call.args[0]
    if varies(trace.labels[x], call.argument(1, "dim", -1)):
        return trace.give_up(call.name, [x], call.out)
    keep(trace, call)


def multiply_matrices(trace: Propagation, call: Call) -> None:
    """Multiply matrices [..., i, k] and [..., k, j]: what varies along k is mixed, else rows and columns keep their labels."""
    a, b = (trace.every(x) for x in call.args[:2])
    labelled = [x for x in call.args[:2] if trace.of(x) is not None]
    rows, columns = varies(a, a.dim() - 2), varies(b, b.dim() - 1)
    if varies(a, a.dim() - 1) or varies(b, b.dim() - 2):
        if not trace.mix(call, (0, -1), (1, -2)):
            trace.give_up(call.name, labelled, call.out)
        return
    if rows and columns:
        return trace.give_up(call.name, labelled, call.out)
    labels = b[..., :1, :] if trace.of(call.args[0]) is None or columns else a[..., :, :1]
    trace.labels[call.out] = labels.expand(call.out.shape)


def combine(trace: Propagation, call: Call) -> None:
    """Tie the labels that meet in one element of a sum, a product or any other pointwise operator.

    A number, and a tensor that is the same for all channels, changes nothing. What is made once for all channels (a gate over
    positions) stays, and ties nothing. A parameter with a value for each channel follows them (layer scale).
    """
    out = _outputs(call)[0]
    tensors = list(tensors_in((*call.args, *call.kwargs.values())))
    known = [_to_dims(labels, out.dim()) for x in tensors if (labels := trace.of(x)) is not None]
    axes = [axis for axis in range(out.dim()) if any(varies(labels, axis) for labels in known)]
    whole: list[Tensor] = []
    shared: list[Tensor] = []
    for x in tensors:
        labels = trace.of(x)
        if labels is None:
            labels = _constant(trace, x, axes, out.dim())
        if labels is not None:
            (whole if len(_own_axes(x, axes, out.dim())) == len(axes) else shared).append(_to_dims(labels, out.dim()))
    for labels in shared:
        trace.ties.pin(labels, "it is made once for all channels of what it is combined with")
    for labels in whole[1:]:
        trace.ties.tie(whole[0], labels)
    trace.labels[out] = torch.broadcast_to((whole or shared)[0], out.shape)


def _constant(trace: Propagation, x: Tensor, axes: list[int], dims: int) -> Tensor | None:
    """Find the labels of a tensor that no filter made, where it meets labels that vary along `axes`: fresh ones for a parameter
    that varies along one of them, NONE for anything else that does; None for what is the same for all channels."""
    wide = _own_axes(x, axes, dims)
    if not wide:
        return None
    axis = wide[0] - (dims - x.dim())
    if len(wide) > 1 or id(x) not in trace.names:
        return torch.full(x.shape, NONE)
    labels = trace.ties.fresh(x.shape[axis])
    trace.shrinks(x, axis, labels)
    return along(labels, axis, x.dim()).expand(x.shape)


def _own_axes(x: Tensor, axes: list[int], dims: int) -> list[int]:
    """Those axes of a result with `dims` axes along which a tensor has values of its own: it is not broadcast or expanded."""
    return [axis for axis in axes if (own := axis - (dims - x.dim())) >= 0 and x.shape[own] > 1 and x.stride(own) != 0]


def _to_dims(labels: Tensor, dims: int) -> Tensor:
    return labels[(None,) * (dims - labels.dim())]


def _outputs(call: Call) -> list[Tensor]:
    return [out for out in call.out if isinstance(out, Tensor)] if isinstance(call.out, (tuple, list)) else [call.out]


def concatenate(trace: Propagation, call: Call) -> None:
    """Concatenate the labels as the tensors are; along an axis that is not the channels', parts shrink together."""
    parts = [trace.every(part) for part in call.args[0] if part.dim() == call.out.dim()]
    axis = call.argument(1, "dim", 0)
    if any(varies(part, axis) for part in parts) or not any(varies(p, a) for p in parts for a in range(p.dim())):
        trace.labels[call.out] = torch.cat(parts, axis)
        return
    slices = [part.narrow(axis, 0, 1) for part in parts if part.shape[axis]]
    for other in slices[1:]:
        trace.ties.tie(slices[0], other)
    trace.labels[call.out] = slices[0].expand(call.out.shape)


def stack(trace: Propagation, call: Call) -> None:
    """Tie the labels of stacked tensors, which have one shape and shrink together."""
    parts = [trace.every(part) for part in call.args[0]]
    for other in parts[1:]:
        trace.ties.tie(parts[0], other)
    trace.labels[call.out] = parts[0].unsqueeze(call.argument(1, "dim", 0)).expand(call.out.shape)


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


def halve(trace: Propagation, call: Call) -> None:
    """Gate one half by the other (GLU): the halves shrink together."""
    labels, axis = trace.labels[call.args[0]], call.argument(1, "dim", -1)
    one, other = labels.chunk(2, axis)
    if varies(labels, axis):
        trace.ties.tie(one, other)
    trace.labels[call.out] = one


def _moved(trace: Propagation, out: Any, moved: Any) -> None:
    """Set the labels of one or several outputs; channels split in two axes (channel shuffle) are tied along all but the
    last, for they can shrink along that one only."""
    pairs = zip(out, moved, strict=True) if isinstance(out, (list, tuple)) else [(out, moved)]
    for tensor, labels in pairs:
        wide = [axis for axis in range(labels.dim()) if varies(labels, axis)]
        for axis in wide[:-1]:
            first = labels.narrow(axis, 0, 1)
            trace.ties.tie(labels, first)
            labels = first.expand(labels.shape)
        trace.labels[tensor] = labels


# Operators that keep elements in place without being tagged as pointwise by torch.
KEEPS = """dropout feature_dropout alpha_dropout native_dropout clone contiguous detach to _to_copy alias type_as hardswish
    hardsigmoid softsign log_sigmoid_forward rrelu_with_noise fill zero uniform normal bernoulli zeros_like ones_like full_like
    empty_like rand_like randn_like lift_fresh"""
POOLS = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices
    max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"""
MOVES = """reshape flatten unflatten permute transpose t numpy_T unsqueeze squeeze expand movedim repeat flip pixel_shuffle
    pixel_unshuffle swapaxes tile"""
REDUCTIONS = """mean amax amin sum prod var std var_mean std_mean max min median nanmedian mode logsumexp nansum aminmax norm
    linalg_vector_norm"""
DIM = {"linalg_vector_norm": 2, "norm": 2}  # which argument of a reduction is its axes; the second one of all others
ALONG = "_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp sort"
# Operators that count positions along an axis -> which of their arguments is that axis.
PICKS = {"select": 1, "narrow": 1, "index_select": 1, "unbind": 1, "split": 2, "split_with_sizes": 2, "roll": 2, "slice": 1}

RULES: dict[str, Rule] = {
    **LAYER_RULES,
    **dict.fromkeys(KEEPS.split(), keep),
    **dict.fromkeys(POOLS.split(), pool),
    **dict.fromkeys(REDUCTIONS.split(), reduce),
    **dict.fromkeys(ALONG.split(), run_along),
    **dict.fromkeys(("bmm", "mm"), multiply_matrices),
    "cat": concatenate,
    "stack": stack,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad),
    **dict.fromkeys(MOVES.split(), move),
    **dict.fromkeys(("view", "_unsafe_view"), view),
    **dict.fromkeys(PICKS, pick),
    "slice": slice_,
    "chunk": chunk,
    "glu": halve,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shuffle),
    POINTWISE: combine,
}
