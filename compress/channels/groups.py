"""Groups of filters that belong together.

Every filter carries a label through the network (propagation.py). Where two labels are tied, their filters are one *unit*:
they go together or stay together. Units of the same layers form a *group*.

A module that maps channels in its own way (resnet-cifar's shortcut, SubspaceLinear) offers
`slice_channels(keep_in, keep_out)`; it then counts as one reader and one writer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import SlimrankError, near
from ..network.resize import CONVS, TRANSPOSED


@dataclass(frozen=True)
class Group:
    """Filters that are cut together. `name`: the first layer in forward order; `units`: what can be cut one by one."""

    name: str
    layers: tuple[str, ...]
    offset: int  # global number of its first unit
    units: int
    filters: int  # channels of the layer it is named after
    fixed: tuple[int, ...]  # units (local numbers) that must stay
    why: str  # why they must, or why nothing can be cut; empty when every unit can go

    @property
    def prunable(self) -> bool:
        """Whether some of its units can be cut and one stays."""
        return self.units > 1 and len(self.fixed) < self.units


@dataclass(frozen=True)
class Mix:
    """The `number`th call of an operator, counted from 1, that mixes channels: it runs on those that are left.

    `reads`: for each of its tensors the place among its arguments, the axis, and the unit of each channel.
    """

    operator: str
    number: int
    reads: tuple[tuple[int, int, Tensor], ...]


@dataclass(frozen=True)
class ChannelMap:
    """Everything that ranking, masking and surgery need to know of a network's channels.

    `reads[layer]` and `writes[layer]`: the global unit of each input and output channel ([channels], -1 for none), in
    forward order. `axes[tensor][axis]`: the same for every parameter and buffer that shrinks with the units.
    `positions[layer]`: multiply-adds per input-output channel pair (output positions times kernel size). `mixes`: where
    channels are mixed by something else than a layer (the pooling over channels of CBAM).
    """

    groups: tuple[Group, ...]
    reads: dict[str, Tensor]
    writes: dict[str, Tensor]
    axes: dict[str, dict[int, Tensor]]
    positions: dict[str, int]
    classifier: str
    mixes: tuple[Mix, ...] = ()

    def group(self, layer: str) -> Group:
        """Find the group that a layer belongs to. Raises SlimrankError for a layer that does not exist."""
        for group in self.groups:
            if layer == group.name or layer in group.layers:
                return group
        raise SlimrankError(f"no layer {layer!r} with filters; {near(layer, [g.name for g in self.groups])}")

    def chosen(self, layers: Sequence[str] | None, features: bool = False, masked: bool = False) -> list[str]:
        """Name the groups that some layers belong to (None: all that can be pruned), each once, in forward order.

        With `features`, the classifier's own name stands for the features that it alone reads. `masked`: groups are masked at
        the layers that read them, and must have no other reader. Raises SlimrankError for a layer that does not exist, and for
        one that cannot be masked alone.
        """
        if layers is None:
            prunable = [group for group in self.groups if group.prunable and self.readers(group)]
            return [group.name for group in prunable if not (masked and self.mixers(group))]
        wanted = set()
        for layer in [layers] if isinstance(layers, str) else layers:
            group = self.group(layer)
            if features and layer == self.classifier:
                wanted.add(layer)
                continue
            if not group.prunable:
                tied = [name for name in group.layers if name != layer]
                beside = f" (tied to {', '.join(tied[:4])}{', ...' if len(tied) > 4 else ''})" if tied else ""
                if layer == self.classifier:
                    beside = " here (car, shapley and switch take it for the features that it reads)"
                raise SlimrankError(f"layer {layer} cannot be pruned or masked alone{beside}: {group.why}; choose another")
            if masked and (mixers := self.mixers(group)):
                raise SlimrankError(
                    f"layer {layer} cannot be masked: {', '.join(mixers)} in forward() mixes its channels; "
                    "choose another layer, or a ranker that masks nothing"
                )
            wanted.add(group.name)
        names = dict.fromkeys([*(group.name for group in self.groups), self.classifier])
        return [name for name in names if name in wanted]

    def removed(self, keep: Mapping[str, Sequence[int]]) -> Tensor:
        """Mark the units that are not among the kept ones of their group, boolean [all units]. Groups not named stay whole."""
        gone = torch.zeros(sum(g.units for g in self.groups), dtype=torch.bool)
        for name, kept in keep.items():
            group = self.group(name)
            gone[group.offset : group.offset + group.units] = True
            gone[torch.as_tensor(kept, dtype=torch.long) + group.offset] = False
        return gone

    def readers(self, group: Group) -> list[str]:
        """Name the layers that read this group's units, in forward order."""
        first, last = group.offset, group.offset + group.units
        return [name for name, units in self.reads.items() if bool(((units >= first) & (units < last)).any())]

    def mixers(self, group: Group) -> list[str]:
        """Name the operators beside layers that read this group's units, each once."""
        first, last = group.offset, group.offset + group.units
        return list(
            dict.fromkeys(
                mix.operator for mix in self.mixes for _, _, units in mix.reads
                if bool(((units >= first) & (units < last)).any())
            )
        )  # fmt: skip

    def macs(self, model: nn.Module, gone: Tensor) -> int:
        """Count the multiply-adds of one image in conv and linear layers once the units in `gone` are cut; nothing is run."""
        total = 0
        for name, per_pair in self.positions.items():
            module = model.get_submodule(name)
            n_in = int(stays(self.reads[name], gone).sum())
            if isinstance(module, (*CONVS, *TRANSPOSED)) and module.groups > 1:
                total += per_pair * n_in * (module.out_channels // module.groups)
            else:
                total += per_pair * n_in * int(stays(self.writes[name], gone).sum())
        return total

    def params(self, model: nn.Module, gone: Tensor) -> int:
        """Count the parameters (not buffers) once the units in `gone` are cut."""
        total = 0
        for name, parameter in model.named_parameters():
            n = parameter.numel()
            for units in self.axes.get(name, {}).values():
                n = n // len(units) * int(stays(units, gone).sum())
            total += n
        return total


def stays(units: Tensor, gone: Tensor) -> Tensor:
    """Mark the channels that remain when the units in `gone` are cut, boolean, shaped like `units`."""
    return ~(gone[units.clamp_min(0)] & (units >= 0))
