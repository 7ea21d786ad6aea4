"""Which channels belong together, found by one forward pass that carries labels instead of numbers.

Every filter gets a label. A label tensor, shaped like the activation, follows it through the network: shape operations
are applied to the label tensor itself, a residual sum ties the labels that meet, a concat concatenates them. What the
pass cannot follow is pinned, with the reason; nothing is skipped silently.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import SlimrankError
from ..network.resize import CONVS
from .groups import ChannelMap, Group
from .ties import Ties

NONE = -1  # the label of what no filter made: the image, constants, padding


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that keep every element where it is.
SAME = _words(
    """relu relu6 hardtanh silu hardswish hardsigmoid sigmoid gelu tanh leaky_relu elu selu celu softplus mish dropout
    feature_dropout alpha_dropout clone contiguous detach to _to_copy alias neg abs clamp clamp_min clamp_max sqrt exp
    type_as softsign hardshrink"""
)
# Operations that mix positions of one channel, never channels.
POOL = _words(
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool2d max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d mean amax sum"""
)
# Operations that only move elements: the label tensor goes through the operation itself.
MOVE = _words(
    """view reshape _unsafe_view flatten unflatten permute transpose t numpy_T slice select chunk split split_with_sizes
    unsqueeze squeeze expand unbind narrow index_select movedim repeat roll flip pixel_shuffle pixel_unshuffle
    channel_shuffle native_channel_shuffle swapaxes tile"""
)
# Of these, the ones that count positions along an axis (the index of that argument): a cut would move what they pick.
COUNTING = {"slice": 1, "select": 1, "narrow": 1, "index_select": 1, "unbind": 1, "split": 2, "split_with_sizes": 2, "roll": 2}
SUM = _words("add sub mul div maximum minimum")


def channel_map(model: nn.Module, example: Tensor) -> ChannelMap:
    """Trace `model` (put in eval mode for the pass) on one example, [1, channels, height, width].

    Raises SlimrankError when the forward pass fails or returns anything but one tensor of logits, [1, classes].
    """
    tracer = _Tracer(model)
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), ExitStack() as stack:
            for name, module in model.named_modules():
                if hasattr(module, "slice_channels"):
                    before, after = tracer.own_rule(name)
                    stack.callback(module.register_forward_pre_hook(before).remove)
                    stack.callback(module.register_forward_hook(after).remove)
            with tracer:
                logits = model(example)
    except TypeError as error:
        if "positional argument" not in str(error):
            raise SlimrankError(f"the model fails on one tensor of images: {error}; check --model") from error
        raise SlimrankError(
            f"the model's forward() takes more than one tensor ({error}); slimrank compresses classifiers of one image tensor: "
            "wrap the model in a module that fills in the rest"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:
        raise SlimrankError(
            f"the model fails on an input of shape {list(example.shape)}: {str(error).splitlines()[0]}; "
            "check --size, --mean and --model"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise SlimrankError("the model must return one tensor of logits, [images, classes]; wrap it so that it does")
    return tracer.finish(logits)


class _Tracer(TorchDispatchMode):
    """Runs the model as it is; beside it, label tensors and a union-find over the labels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.ties = Ties()
        self.reads: dict[str, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.own: set[str] = set()
        self.axes: dict[str, dict[int, Tensor]] = {}
        self.positions: dict[str, int] = {}
        self.paused = 0

    # -- labels ------------------------------------------------------------------------------------------------------

    def of(self, x: object) -> Tensor | None:
        return self.labels.get(x) if isinstance(x, Tensor) else None

    @staticmethod
    def varies(labels: Tensor, dim: int) -> bool:
        """Whether labels differ along an axis."""
        flat = labels.shape[dim] < 2 or labels.stride(dim) == 0  # expanded: the same by construction
        return not flat and not bool((labels == labels.narrow(dim, 0, 1)).all())

    def every(self, x: Tensor) -> Tensor:
        """The labels of each element, NONE for a tensor that no filter made."""
        labels = self.of(x)
        return torch.full(x.shape, NONE) if labels is None else labels

    def per_channel(self, x: Tensor, axis: int) -> Tensor:
        """[channels]: the labels along one axis; where a channel holds several labels they are pinned (nothing can follow)."""
        labels = self.of(x)
        if labels is None:
            return torch.full((x.shape[axis],), NONE)
        rows = labels.movedim(axis, 0)
        while rows.dim() > 1:
            if rows.stride(-1) != 0 and rows.shape[-1] > 1 and not bool((rows == rows[..., :1]).all()):
                self.ties.pin(labels, "channels and positions are mixed before a layer reads them")
            rows = rows[..., 0]
        return rows.clone()

    def spread(self, labels: Tensor, out: Tensor, axis: int = 1) -> None:
        """Give `out` these labels along an axis, the same at every position."""
        shape = [1] * out.dim()
        shape[axis] = -1
        self.labels[out] = labels.view(shape).expand(out.shape)

    def note(self, table: dict[str, Tensor], name: str, labels: Tensor) -> None:
        """Remember what a layer reads or writes; a layer called twice ties its two uses."""
        if name in table:
            self.ties.tie(table[name], labels)
        else:
            table[name] = labels

    def output(self, name: str, n: int) -> Tensor:
        """A layer's output labels: fresh ones the first time, the same ones when it is called again."""
        return self.writes[name] if name in self.writes else self.ties.fresh(n)

    def axis(self, tensor: object, axis: int, labels: Tensor) -> bool:
        """A parameter's axis shrinks with these labels; False when the tensor is no parameter of the model."""
        name = self.names.get(id(tensor))
        if name is None:
            return False
        known = self.axes.setdefault(name, {})
        if axis in known:
            self.ties.tie(known[axis], labels)
        known.setdefault(axis, labels)
        return True

    # -- operations --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            self.paused += 1  # work on label tensors is not the model's
            try:
                self.follow(func, args, kwargs or {}, out)
            finally:
                self.paused -= 1
        return out

    def follow(self, func, args, kwargs, out) -> None:
        op = func._schema.name.split("::")[1]
        op = op if op.startswith("_") else op.rstrip("_")
        if op in ("conv1d", "conv2d", "conv3d"):
            return self.conv(out, *args, **kwargs)
        if op == "linear":
            return self.linear(out, *args)
        labelled = [x for x in _tensors(args) if self.of(x) is not None]
        if not labelled:
            return
        x = args[0]
        if op in SAME:
            self.labels[out] = self.of(x)
        elif op in ("batch_norm", "prelu"):
            labels = self.per_channel(x, 1)
            for tensor in args[1:5]:
                if isinstance(tensor, Tensor) and tensor.numel() > 1 and not self.axis(tensor, 0, labels):
                    self.ties.pin(labels, f"{op} runs on tensors that are not parameters")
            self.labels[out] = self.of(x)
        elif op in POOL:
            self.pool(op, out[0] if isinstance(out, tuple) else out, x, args, kwargs)
        elif op in SUM:
            self.elementwise(out, *args[:2])
        elif op in MOVE:
            self.move(op, func, out, args, kwargs)
        elif op == "cat":
            self.labels[out] = torch.cat([self.every(part) for part in args[0]], *args[1:], **kwargs)
        elif op in ("constant_pad_nd", "pad"):
            if x.dim() > 3 and len(args[1]) <= 2 * (x.dim() - 2):
                self.spread(self.per_channel(x, 1), out)
            else:
                self.labels[out] = torch.constant_pad_nd(self.every(x), args[1], NONE)
        elif isinstance(out, Tensor) and out.numel() and not out.is_floating_point():
            return
        else:
            self.give_up(op, labelled, out)

    def give_up(self, op: str, tensors: list[Tensor], out: object) -> None:
        for x in tensors:
            self.ties.pin(self.labels[x], f"it passes through {op}, which mixes channels or which slimrank does not know")
        if isinstance(out, Tensor) and out.shape == tensors[0].shape:  # pinned as it is, it can be followed on
            self.labels[out] = self.labels[tensors[0]]

    def conv(self, out, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> None:
        labels = self.per_channel(x, 1)
        name = self.layer(weight, labels, CONVS)
        if name is None:
            return self.spread(torch.full((out.shape[1],), NONE), out)
        if groups > 1:  # a conv group goes as a whole: its inputs and outputs are one unit
            rows = labels.view(groups, -1)
            self.ties.tie(rows, rows[:, :1])
            written = rows[:, :1].expand(groups, out.shape[1] // groups).reshape(-1)
        else:
            written = self.output(name, out.shape[1])
            self.axis(weight, 1, labels)
        self.axis(weight, 0, written)
        self.done(name, labels, written, bias, out, out.shape[2:].numel() * weight.shape[2:].numel(), 1)

    def linear(self, out, x, weight, bias=None) -> None:
        labels = self.per_channel(x, x.dim() - 1)
        name = self.layer(weight, labels, (nn.Linear,))
        if name is None:
            return self.spread(torch.full((out.shape[-1],), NONE), out, out.dim() - 1)
        written = self.output(name, out.shape[-1])
        self.axis(weight, 0, written)
        self.axis(weight, 1, labels)
        self.done(name, labels, written, bias, out, out.numel() // out.shape[-1], out.dim() - 1)

    def layer(self, weight: Tensor, labels: Tensor, kinds: tuple[type, ...]) -> str | None:
        """The module that owns a weight; without one its input is pinned."""
        name, _, leaf = self.names.get(id(weight), "").rpartition(".")
        if leaf == "weight" and isinstance(self.model.get_submodule(name), kinds):
            return name
        self.ties.pin(labels, "a weight outside nn.Conv and nn.Linear reads it")
        return None

    def done(self, name, read, written, bias, out, per_pair, axis) -> None:
        if bias is not None:
            self.axis(bias, 0, written)
        self.note(self.reads, name, read)
        self.note(self.writes, name, written)
        self.positions[name] = self.positions.get(name, 0) + per_pair
        self.spread(written, out, axis)

    def own_rule(self, name: str):
        """Hooks around a module with `slice_channels`: inside it nothing is followed, outside it reads and writes."""

        def before(_module, inputs):
            if not self.paused:
                self.note(self.reads, name, self.per_channel(inputs[0], 1))
            self.paused += 1

        def after(_module, _inputs, out):
            self.paused -= 1
            self.own.add(name)
            labels = self.output(name, out.shape[1])
            self.note(self.writes, name, labels)
            self.spread(labels, out)

        return before, after

    def pool(self, op: str, out: Tensor, x: Tensor, args, kwargs) -> None:
        labels = self.labels[x]
        if op not in ("mean", "amax", "sum"):
            return self.spread(self.per_channel(x, 1), out)
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        dims = [d % x.dim() for d in ([dims] if isinstance(dims, int) else dims or range(x.dim()))]
        kept = labels
        for dim in sorted(dims, reverse=True):
            if self.varies(labels, dim):
                return self.give_up(op, [x], out)
            kept = kept.narrow(dim, 0, 1) if out.dim() == x.dim() else kept.select(dim, 0)
        self.labels[out] = kept

    def elementwise(self, out: Tensor, a, b) -> None:
        sides = []
        for side, other in ((a, b), (b, a)):
            labels = self.of(side)
            if labels is None and isinstance(side, Tensor) and side.numel() > 1:
                labels = self.parameter(side, self.labels[other])
            sides.append(labels)
        tensors = [s for s in sides if s is not None]
        if len(tensors) == 2:
            self.ties.tie(*tensors)
        self.labels[out] = torch.broadcast_to(tensors[0], out.shape)

    def parameter(self, side: Tensor, other: Tensor) -> Tensor:
        """Labels of a parameter that meets an activation directly (layer scale): one axis may follow the channels."""
        wide = [d for d in range(side.dim()) if side.shape[d] > 1]
        if len(wide) == 1 and id(side) in self.names:
            labels = self.ties.fresh(side.shape[wide[0]])
            self.axis(side, wide[0], labels)
            shape = [1] * side.dim()
            shape[wide[0]] = -1
            return labels.view(shape)
        return torch.full(side.shape, NONE)

    def move(self, op: str, func, out, args, kwargs) -> None:
        labels = self.labels[args[0]]
        if op in COUNTING and not (isinstance(out, Tensor) and op == "slice" and out.shape == labels.shape):
            dim = args[COUNTING[op]] if len(args) > COUNTING[op] else kwargs.get("dim", kwargs.get("dims", 0))
            for axis in dim if isinstance(dim, (list, tuple)) else [dim]:
                if self.varies(labels, axis):
                    self.ties.pin(labels, f"forward() picks channels by number ({op})")
        moved = labels.reshape(out.shape) if "view" in str(func) else func(labels, *args[1:], **kwargs)
        outs, moves = (out, moved) if isinstance(out, (list, tuple)) else ([out], [moved])
        if op == "chunk" and self.varies(labels, args[2] if len(args) > 2 else kwargs.get("dim", 0)):
            if len({m.shape for m in moves}) > 1:
                self.ties.pin(labels, "forward() chunks its channels into unequal parts")
            else:
                for other in moves[1:]:  # equal parts stay equal only if they shrink together
                    self.ties.tie(moves[0], other)
        for one, its in zip(outs, moves, strict=True):
            wide = [d for d in range(its.dim()) if self.varies(its, d)]
            for dim in wide[:-1]:  # channels split in two axes (channel shuffle): equal along all but the last
                self.ties.tie(its, its.narrow(dim, 0, 1))
            self.labels[one] = its

    # -- result ------------------------------------------------------------------------------------------------------

    def finish(self, logits: Tensor) -> ChannelMap:
        labels = self.per_channel(logits, 1)
        self.ties.pin(labels, "its outputs are the model's classes")
        roots = torch.tensor([self.ties.find(i) for i in range(len(self.ties.parent))] + [NONE])
        final = set(roots[labels].tolist())
        classifier = next((n for n, w in reversed(self.writes.items()) if set(roots[w].tolist()) & final), "")

        groups: list[Group] = []
        unit = torch.full((len(self.ties.parent) + 1,), NONE)
        for layers, members in self.components(roots):
            named = next((n for n in layers if n not in self.own), layers[0])
            for local, root in enumerate(members):
                unit[root] = sum(g.units for g in groups) + local
            fixed = [i for i, root in enumerate(members) if root in self.ties.why]
            why = self.ties.why[members[fixed[0]]] if fixed else ""
            if len(members) == 1 and not fixed:
                why = f"its {len(self.writes[named])} channels are all tied together: cutting one would cut them all"
            n = len(self.writes[named])
            groups.append(Group(named, tuple(layers), int(unit[members[0]]), len(members), n, tuple(fixed), why))

        def units(labels: Tensor) -> Tensor:
            return unit[roots[labels]]  # NONE picks the last element, which is NONE

        return ChannelMap(
            groups=tuple(groups),
            reads={n: units(v) for n, v in self.reads.items()},
            writes={n: units(v) for n, v in self.writes.items()},
            axes={n: {a: units(v) for a, v in axes.items()} for n, axes in self.axes.items()},
            positions=self.positions,
            classifier=classifier,
        )

    def components(self, roots: Tensor) -> list[tuple[list[str], list[int]]]:
        """Layers connected by shared units, each with its units in order of first appearance."""
        found: list[tuple[list[str], dict[int, None]]] = []
        for name, written in self.writes.items():
            mine = dict.fromkeys(r for r in roots[written].tolist() if r >= 0)
            joined = [c for c in found if c[1].keys() & mine.keys()]
            if not mine:
                continue
            if not joined:
                found.append(([name], mine))
                continue
            first = joined[0]
            for other in joined[1:]:
                first[0].extend(other[0])
                first[1].update(other[1])
                found.remove(other)
            first[0].append(name)
            first[1].update(mine)
        order = {n: i for i, n in enumerate(self.writes)}
        return [(sorted(layers, key=order.__getitem__), list(members)) for layers, members in found]


def _tensors(args) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _tensors(arg)
