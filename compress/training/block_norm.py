"""Block norm: groups of filters that vanish together in training (Varshneya et al., after Kloft et al.'s lp-norm groups).

    Omega = || ( ||w_1||_p, ..., ||w_G||_p ) ||_q        summed over layers, times lambda

The filters of a layer are G equal contiguous groups, those left over included (sizes differ by one at most). A group holds
its filters' weights, bias, gamma and beta, so that a group at zero is silent and cutting it changes no logit. Filters that a
residual sum or a concat ties together are one filter here as everywhere (layers.py). Hidden linear layers take part.

p=2, q=1 and p=q=1 are stepped proximally, which reaches zero; other 1 <= p, q <= inf by a subgradient, which does not.

Two more terms, which the paper draws (Figure 1) and gives no formula for; what follows is our choice. Maps are taken where
the next layer reads them, squashed by 2 sigmoid(a) - 1 so that silence is 0, two random filters a group and step.
activation: filters of a group fire in the same region; mean of D = 2|a-b|_1 / (|a|_1 + |b|_1 + |a-b|_1), the generalised
Jaccard distance, over pairs. spatial: a filter fires in one place; mean of sum a_j |j - centre| / sum a_j, in map widths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap, Group
from ..channels.masking import captured
from ..network.resize import CONVS
from ..network.subspace import sizes
from ..pruning.surgery import cut
from .recipe import BlockNorm

NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Blocks:
    """The groups of filters of one layer. `rows[parameter]`: the group of each of its rows (axis 0), -1 for none."""

    layer: str
    count: int
    units: Tensor  # group of each unit
    rows: dict[str, Tensor]


def blocks(model: nn.Module, channels: ChannelMap, groups: int) -> list[Blocks]:
    """The groups of every layer that can be pruned. Raises SlimrankError for more groups than a layer has filters."""
    owners = {name: module for name, module in model.named_modules() if isinstance(module, (*CONVS, nn.Linear, NORMS))}
    parameters = {name for name, _ in model.named_parameters()}
    found = []
    every = [group for group in channels.groups if group.prunable]
    least = min(every, key=lambda group: group.units, default=None)
    if least is not None and groups > least.units:
        raise SlimrankError(
            f"`block_norm`: {groups} groups, layer {least.name} has {least.units} filters; take at most {least.units}"
        )
    for group in every:
        mine = torch.repeat_interleave(torch.arange(groups), torch.tensor(sizes(group.units, groups)))
        rows = {}
        for name, axes in channels.axes.items():
            if name not in parameters or 0 not in axes or name.rpartition(".")[0] not in owners:
                continue
            units = axes[0] - group.offset
            inside = (units >= 0) & (units < group.units)
            if bool(inside.any()):
                rows[name] = torch.where(inside, mine[units.clamp(0, group.units - 1)], -1)
        found.append(Blocks(group.name, groups, mine, rows))
    if not found:
        raise SlimrankError("`block_norm`: no layer of this network can be pruned; see `slimrank inspect`")
    return found


def norms(parameters: Mapping[str, Tensor], layer: Blocks, p: float) -> Tensor:
    """||w_g||_p of each group, [groups]; differentiable, with gradient zero at zero."""
    total = torch.zeros(layer.count, device=next(iter(parameters.values())).device)
    for name, ids in layer.rows.items():
        size = parameters[name].flatten(1).abs() if parameters[name].dim() > 1 else parameters[name][:, None].abs()
        inside = ids >= 0
        if math.isinf(p):
            total = total.scatter_reduce(0, ids[inside].to(total.device), size[inside].amax(1), "amax")
        else:
            total = total.index_add(0, ids[inside].to(total.device), (size[inside] ** p).sum(1))
    if math.isinf(p) or p == 1:
        return total
    return torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny) ** (1 / p), 0.0)


def omega(parameters: Mapping[str, Tensor], layers: list[Blocks], p: float, q: float) -> Tensor:
    """The norm itself, summed over layers."""
    return torch.stack([torch.linalg.vector_norm(norms(parameters, layer, p), q) for layer in layers]).sum()


class Regularizer:
    """Block norm on one network in training: `watch` around the forward pass, `penalty` in the loss, `shrink` after a step."""

    def __init__(self, model: nn.Module, channels: ChannelMap, options: BlockNorm):
        self.options, self.model = options.check(), model
        self.layers = blocks(model, channels, options.groups)
        self.parameters = dict(model.named_parameters())
        self.maps = self._readers(channels) if options.activation_norm or options.spatial_norm else {}

    def _readers(self, channels: ChannelMap) -> dict[str, list[tuple[int, Tensor]]]:
        """For the layer that reads a group's maps: the channels of every group of filters."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for layer in self.layers:
            group = channels.group(layer.layer)
            for reader in channels.readers(group):
                if isinstance(self.model.get_submodule(reader), CONVS):
                    units = channels.reads[reader] - group.offset
                    inside = (units >= 0) & (units < group.units)
                    mine = torch.where(inside, layer.units[units.clamp(0, group.units - 1)], -1)
                    found.setdefault(reader, []).append((layer.count, mine))
                    break
        return found

    def watch(self):
        """Within the context, forward passes leave the maps that `penalty` reads."""
        return captured(self.model, list(self.maps))

    def penalty(self, maps: dict[str, Tensor], generator: torch.Generator) -> Tensor | float:
        """What joins the loss: all that is not stepped proximally."""
        o = self.options
        total: Tensor | float = 0.0
        if o.strength and not o.proximal:
            total = o.strength * omega(self.parameters, self.layers, o.p, o.q)
        if not self.maps:
            return total
        alike, near = [], []
        for reader, parts in self.maps.items():
            for count, ids in parts:
                a, b = pairs(maps[reader].float(), count, ids, generator)
                alike.append(distance(a, b))
                near.append(torch.cat([concentration(a), concentration(b)]).mean())
        return total + o.activation_norm * torch.stack(alike).mean() + o.spatial_norm * torch.stack(near).mean()

    @torch.no_grad()
    def shrink(self, lr: float) -> None:
        """The proximal step of `lr` times lambda."""
        o = self.options
        if not o.strength or not o.proximal:
            return
        step = lr * o.strength
        for layer in self.layers:
            if o.p == 2:
                size = norms(self.parameters, layer, 2)
                scale = (1 - step / size.clamp_min(1e-30)).clamp_min(0)
            for name, ids in layer.rows.items():
                parameter, ids = self.parameters[name], ids.to(self.parameters[name].device)
                shape = (-1, *[1] * (parameter.dim() - 1))
                inside = (ids >= 0).view(shape)
                if o.p == 2:
                    parameter.mul_(torch.where(inside, scale[ids.clamp_min(0)].view(shape), 1.0))
                else:
                    parameter.copy_(torch.where(inside, nn.functional.softshrink(parameter, step), parameter))


def pairs(maps: Tensor, count: int, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random channels of every group, squashed: [images, groups, h, w] each; the same one twice where it is alone."""
    chosen = []
    for g in range(count):
        mine = (ids == g).nonzero().flatten()
        if len(mine):
            two = torch.randperm(len(mine), generator=generator)[:2]
            chosen.append(mine[two] if len(mine) > 1 else mine[[0, 0]])
    both = torch.stack(chosen, 1)
    squashed = 2 * torch.sigmoid(maps[:, both.flatten().to(maps.device)]) - 1
    a, b = squashed.clamp_min(0).split(both.shape[1], 1)
    return a, b


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of D over maps [..., h, w]; 0 for equal maps, two silent ones among them, 1 for disjoint ones."""
    apart = (a - b).abs().sum((-2, -1))
    return (2 * apart / (a.abs().sum((-2, -1)) + b.abs().sum((-2, -1)) + apart).clamp_min(1e-12)).mean()


def concentration(a: Tensor) -> Tensor:
    """Mean distance of a map's activation from its centre of mass, [...], in map widths; 0 for a silent map."""
    height, width = a.shape[-2:]
    y = torch.arange(height, dtype=a.dtype, device=a.device).view(-1, 1) / width
    x = torch.arange(width, dtype=a.dtype, device=a.device) / width
    mass = a.sum((-2, -1), keepdim=True).clamp_min(1e-12)
    cy, cx = ((a * axis).sum((-2, -1), keepdim=True) / mass for axis in (y, x))
    return (a * ((y - cy) ** 2 + (x - cx) ** 2 + 1e-12).sqrt()).sum((-2, -1)) / mass[..., 0, 0]


@dataclass(frozen=True)
class Vanished:
    """Block norm after training. `relevance[layer]`: ||w_g||_p of each group; `gone[layer]`: the groups that are zero.

    `filters` could be cut with them. `fed[layer]`: filters of such groups that a shortcut without parameters still feeds, which
    stay. `kept_alive`: layers all of whose groups vanished; one filter of theirs stays, since a layer cannot be empty.
    """

    relevance: dict[str, list[float]]
    gone: dict[str, list[int]]
    kept_alive: list[str]
    fed: dict[str, int]
    filters: int

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def vanished(model: nn.Module, channels: ChannelMap, options: BlockNorm, example: Tensor) -> tuple[Vanished, Tensor]:
    """Which groups are zero, and the units to cut with them (boolean, [all units]): those that read as zero everywhere."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    relevance, gone, alive, fed = {}, {}, [], {}
    units, loud = channels.removed({}), heard(model, channels, example)
    for layer in blocks(model, channels, options.groups):
        size = norms(parameters, layer, options.p)
        relevance[layer.layer] = [float(s) for s in size]
        zero = (size == 0).nonzero().flatten().tolist()
        if not zero:
            continue
        gone[layer.layer] = zero
        group: Group = channels.group(layer.layer)
        out = torch.isin(layer.units, torch.tensor(zero))
        out[list(group.fixed)] = False
        still = out & loud[group.offset : group.offset + group.units]
        if bool(still.any()):
            fed[layer.layer] = int(still.sum())
            out &= ~still
        if bool(out.all()):
            out[0] = False
            alive.append(layer.layer)
        units[group.offset : group.offset + group.units] = out
    return Vanished(relevance, gone, alive, fed, int(units.sum())), units


def heard(model: nn.Module, channels: ChannelMap, example: Tensor) -> Tensor:
    """Boolean [all units]: whether a layer reads anything but zero from a unit on these images, [images, ...]."""
    loud = channels.removed({})
    with torch.inference_mode(), captured(model.eval(), list(channels.reads)) as seen:
        model(example)
        for name, units in channels.reads.items():
            axis = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
            x = seen[name].movedim(axis, 0).flatten(1)
            loud[units[(x.abs().amax(1).cpu() > 0) & (units >= 0)]] = True
    return loud


def without_vanished(model: nn.Module, channels: ChannelMap, options: BlockNorm, example: Tensor) -> tuple[nn.Module, Vanished]:
    """A copy without the groups that are zero: the same logits from fewer filters. `example`: a few images, for silence."""
    found, units = vanished(model, channels, options, example)
    return (cut(model, channels, units) if found.filters else model), found
