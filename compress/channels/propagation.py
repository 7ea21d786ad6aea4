"""Carry channel labels through one forward pass.

Every filter gets a label. A label tensor, shaped like the activation, follows it through the network: shape operations
are applied to the label tensor itself, a residual sum ties the labels that meet, a concat concatenates them (rules.py:
one rule an operator). What no rule can follow is pinned, with the reason; nothing is skipped silently.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from .ties import NONE, Ties

CONVS = [f"{kind}{sides}d" for kind in ("conv", "conv_transpose") for sides in (1, 2, 3)]
LAYERS = frozenset((*CONVS, "linear"))  # their output has labels even where their input has none
OWNERS = LAYERS | {"batch_norm", "instance_norm", "group_norm", "layer_norm", "prelu"}  # their rules see to their parameters
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
POINTWISE = "pointwise"  # the rule of every operator that torch says is

COUNTS = (torch.bool, torch.int64)  # of one that is a single number no channel goes on


@dataclass(frozen=True)
class Call:
    """One call of an operator. `name`: without namespace, overload and the underscore of in-place variants."""

    name: str
    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Look an argument up by its position, else by its name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Rule = Callable[["Propagation", Call], None]


class Propagation(TorchDispatchMode):
    """Run a model as it is and keep, beside it, label tensors and a union-find over the labels.

    `reads[layer]`, `writes[layer]`: labels of each input and output channel, [channels], layers in forward order.
    `axes[tensor][axis]`: labels along the axis of a parameter or buffer that shrinks with them.
    `positions[layer]`: multiply-adds per input-output channel pair. `self_slicing`: modules with `slice_channels`.
    `mixes`: calls of operators that mix channels, as ChannelMap has them. `calls`: how often each operator has run.
    `running`: layers that are being called.
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.rules = model, rules
        self.names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
        self.labels: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.ties = Ties()
        self.reads: dict[str, Tensor] = {}
        self.writes: dict[str, Tensor] = {}
        self.axes: dict[str, dict[int, Tensor]] = {}
        self.positions: dict[str, int] = {}
        self.mixes: list[tuple[str, int, tuple[tuple[int, int, Tensor], ...]]] = []
        self.calls: Counter[str] = Counter()
        self.self_slicing: set[str] = set()
        self.running: Counter[str] = Counter()
        self.paused = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.paused and made_of_others(func, self.rules):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            self.paused += 1  # work on label tensors is not the model's
            try:
                self.follow(Call(plain_name(func), func, args, kwargs or {}, out))
            finally:
                self.paused -= 1
        return out

    def follow(self, call: Call) -> None:
        """Apply the rule of the operator; without one its inputs are pinned, unless it makes one truth value or integer."""
        self.calls[call.name] += 1
        tensors = list(tensors_in((*call.args, *call.kwargs.values())))
        if call.name not in OWNERS:
            for x in tensors:
                self.label_vector(x)
        labelled = [x for x in tensors if self.of(x) is not None]
        if not labelled and call.name not in LAYERS:
            return
        rule = rule_of(call.func, self.rules)
        if rule is not None:
            rule(self, call)
        elif not (isinstance(call.out, Tensor) and call.out.numel() == 1 and call.out.dtype in COUNTS):
            self.give_up(call.name, labelled, call.out)

    def label_vector(self, x: Tensor) -> None:
        """Label a parameter or buffer that has one value for each of some channels, when it is first used: views of it, and
        what is computed from it value by value, carry the labels to where it meets an activation."""
        wide = [axis for axis in range(x.dim()) if x.shape[axis] > 1]
        if len(wide) == 1 and id(x) in self.names and x not in self.labels:
            labels = self.ties.fresh(x.shape[wide[0]])
            self.shrinks(x, wide[0], labels)
            self.labels[x] = along(labels, wide[0], x.dim()).expand(x.shape)

    def give_up(self, operator: str, inputs: list[Tensor], out: object) -> None:
        """Pin the labels of the inputs: the operator mixes channels, or nobody knows what it does."""
        for x in inputs:
            reason = f"it passes through {operator.lstrip('_')}, which mixes channels or which slimrank does not know"
            self.ties.pin(self.labels[x], reason)
        if isinstance(out, Tensor) and out.shape == inputs[0].shape:  # pinned as it is, it can be followed on
            self.labels[out] = self.labels[inputs[0]]

    def mix(self, call: Call, *mixed: tuple[int, int]) -> bool:
        """Let an operator run on the channels that are left: `mixed` are the places of its tensors among its arguments, with
        the axis along which each is mixed and along which alone its labels vary. False where they vary along others too."""
        reads = []
        for place, axis in mixed:
            labels = self.every(call.args[place])
            if any(varies(labels, other) for other in range(labels.dim()) if other != axis % labels.dim()):
                return False
            reads.append((place, axis, self.per_channel(call.args[place], axis)))
        for _, _, labels in reads[1:]:
            self.ties.tie(reads[0][2], labels)
        self.mixes.append((call.name, self.calls[call.name], tuple(reads)))
        return True

    def of(self, x: object) -> Tensor | None:
        """Look up the labels of a tensor; None where it has none."""
        return self.labels.get(x) if isinstance(x, Tensor) else None

    def every(self, x: Tensor) -> Tensor:
        """Look up the label of each element; NONE throughout for a tensor that no filter made."""
        labels = self.of(x)
        return torch.full(x.shape, NONE) if labels is None else labels

    def per_channel(self, x: Tensor, axis: int) -> Tensor:
        """Reduce labels to one a channel, [channels]; where a channel holds several they are pinned: nothing can follow."""
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
        self.labels[out] = along(labels, axis, out.dim()).expand(out.shape)

    def note(self, table: dict[str, Tensor], layer: str, labels: Tensor) -> None:
        """Record what a layer reads or writes; a layer called twice ties its two uses."""
        if layer in table:
            self.ties.tie(table[layer], labels)
        else:
            table[layer] = labels

    def output(self, layer: str, n: int) -> Tensor:
        """Label a layer's n output channels: fresh at its first call, the same ones when it is called again."""
        return self.writes[layer] if layer in self.writes else self.ties.fresh(n)

    def shrinks(self, tensor: Tensor, axis: int, labels: Tensor) -> bool:
        """Let an axis of a parameter or buffer follow these labels; False when the tensor is none of the model's."""
        name = self.names.get(id(tensor))
        if name is None:
            return False
        known = self.axes.setdefault(name, {})
        if axis in known:
            self.ties.tie(known[axis], labels)
        known.setdefault(axis, labels)
        return True


def varies(labels: Tensor, axis: int) -> bool:
    """Tell whether labels differ along an axis."""
    if labels.shape[axis] < 2 or labels.stride(axis) == 0:  # expanded: the same by construction
        return False
    return not bool((labels == labels.narrow(axis, 0, 1)).all())


def along(labels: Tensor, axis: int, dims: int) -> Tensor:
    """Shape labels [n] to broadcast along one axis of a tensor with `dims` axes."""
    shape = [1] * dims
    shape[axis] = -1
    return labels.view(shape)


def plain_name(func: OpOverload) -> str:
    name: str = func._schema.name.split("::")[1]
    return name if name.startswith("_") else name.rstrip("_")


def rule_of(func: OpOverload, rules: Mapping[str, Rule]) -> Rule | None:
    """Look up the rule of an operator, by its name or because torch tags it, or its functional form, as pointwise."""
    name = plain_name(func)
    if torch.Tag.pointwise in func.tags or (name not in rules and _pointwise(name)):
        return rules[POINTWISE]
    return rules.get(name)


def made_of_others(func: OpOverload, rules: Mapping[str, Rule]) -> bool:
    """Tell whether an operator without a rule of its own runs as other operators, which are followed in its place."""
    return rule_of(func, rules) is None and func.has_kernel_for_dispatch_key(COMPOSITE)


@functools.cache
def _pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, one).tags for one in packet.overloads())


def tensors_in(args: Iterable[object]) -> Iterator[Tensor]:
    """Every tensor among the arguments of an operator, lists included."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from tensors_in(arg)
