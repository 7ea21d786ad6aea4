"""Block norm: blocks of filters that vanish together in training (Varshneya et al., after Kloft et al.'s lp-norm groups).

    Omega = || ( ||w_1||_p, ..., ||w_G||_p ) ||_q        summed over layers, times lambda

The filters of a layer form G equal contiguous blocks (the paper's groups; sizes differ by one at most). A block holds its
filters' weights, bias, gamma and beta, so that a block at zero is silent and cutting it changes no logit. Filters that a
residual sum or a concat ties together are one filter here as everywhere (channels/groups.py). Hidden linear layers take part.

p=2, q=1 and p=q=1 are stepped proximally, which reaches zero; other 1 <= p, q <= inf by a subgradient, which does not.

Two more terms, which the paper draws (Figure 1) and gives no formula for; what follows is our choice. Maps are taken where
the next layer reads them, squashed by 2 sigmoid(a) - 1 so that silence is 0, two random filters a block and step.
activation_norm: filters of a block fire in the same region; mean of D = 2|a-b|_1 / (|a|_1 + |b|_1 + |a-b|_1), the generalised
Jaccard distance, over pairs. spatial_norm: a filter fires in one place; mean of sum a_j |j - centre| / sum a_j, in map widths.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap, Group
from ..channels.masking import captured
from ..network.resize import CONVS
from ..network.subspace import sizes
from .recipe import BlockNorm

NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class FilterBlocks:
    """The blocks of filters of one layer, numbered from 0 to `count`.

    `of_unit` [units]: the block of each filter. `of_row[parameter]` [rows]: the block of each row (axis 0) of a parameter, -1
    for rows of other layers.
    """

    layer: str
    count: int
    of_unit: Tensor
    of_row: dict[str, Tensor]


def filter_blocks(model: nn.Module, channels: ChannelMap, count: int) -> list[FilterBlocks]:
    """Divide every layer that can be pruned into `count` blocks. Raises SlimrankError where a layer has fewer filters."""
    prunable = [group for group in channels.groups if group.prunable]
    if not prunable:
        raise SlimrankError("`block_norm`: no layer of this network can be pruned; see `slimrank inspect`")
    least = min(prunable, key=lambda group: group.units)
    if count > least.units:
        raise SlimrankError(
            f"`block_norm`: {count} groups, layer {least.name} has {least.units} filters; take at most {least.units}"
        )
    owners = {name for name, module in model.named_modules() if isinstance(module, (*CONVS, nn.Linear, NORMS))}
    parameters = {name for name, _ in model.named_parameters()}
    rows = {
        name: axes[0]
        for name, axes in channels.axes.items()
        if name in parameters and 0 in axes and name.rpartition(".")[0] in owners
    }
    layers = []
    for group in prunable:
        of_unit = torch.repeat_interleave(torch.arange(count), torch.tensor(sizes(group.units, count)))
        blocks_of_rows = {name: blocks_of(units, group, of_unit) for name, units in rows.items()}
        of_row = {name: ids for name, ids in blocks_of_rows.items() if bool((ids >= 0).any())}
        layers.append(FilterBlocks(group.name, count, of_unit, of_row))
    return layers


def blocks_of(units: Tensor, group: Group, of_unit: Tensor) -> Tensor:
    """The block of each global unit among `units`; -1 for units of other groups."""
    local = units - group.offset
    inside = (local >= 0) & (local < group.units)
    return torch.where(inside, of_unit[local.clamp(0, group.units - 1)], -1)


def norms(parameters: Mapping[str, Tensor], layer: FilterBlocks, p: float) -> Tensor:
    """||w_g||_p of each block, [blocks]; differentiable, with gradient zero at zero."""
    total = torch.zeros(layer.count, device=next(iter(parameters.values())).device)
    for name, ids in layer.of_row.items():
        size = parameters[name].flatten(1).abs() if parameters[name].dim() > 1 else parameters[name][:, None].abs()
        inside = ids >= 0
        if math.isinf(p):
            total = total.scatter_reduce(0, ids[inside].to(total.device), size[inside].amax(1), "amax")
        else:
            total = total.index_add(0, ids[inside].to(total.device), (size[inside] ** p).sum(1))
    if math.isinf(p) or p == 1:
        return total
    return torch.where(total > 0, total.clamp_min(torch.finfo(total.dtype).tiny) ** (1 / p), 0.0)


def omega(parameters: Mapping[str, Tensor], layers: list[FilterBlocks], p: float, q: float) -> Tensor:
    """The norm itself, summed over layers."""
    return torch.stack([torch.linalg.vector_norm(norms(parameters, layer, p), q) for layer in layers]).sum()


class BlockNormRegulariser:
    """Block norm and the two terms on maps, on one network in training (a regularisers.Regulariser)."""

    def __init__(self, model: nn.Module, channels: ChannelMap, options: BlockNorm):
        self.options, self.model = options.check(), model
        self.layers = filter_blocks(model, channels, options.groups)
        self.parameters = dict(model.named_parameters())
        reads_maps = options.activation_norm or options.spatial_norm
        self.maps = map_readers(model, channels, self.layers) if reads_maps else {}

    def active(self, epoch: int) -> bool:
        return True

    def context(self, labels: Tensor) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Within the context, forward passes leave what the layers in `maps` read."""
        return captured(self.model, list(self.maps))

    def penalty(self, seen: Mapping[str, Tensor], generator: torch.Generator) -> Tensor | float:
        """All terms that are not stepped proximally. `seen`: the maps that `context` gave."""
        options = self.options
        total: Tensor | float = 0.0
        if options.strength and not options.proximal:
            total = options.strength * omega(self.parameters, self.layers, options.p, options.q)
        if not self.maps:
            return total
        distances, spreads = [], []
        for reader, layers in self.maps.items():
            for count, ids in layers:
                a, b = pairs(seen[reader].float(), count, ids, generator)
                distances.append(distance(a, b))
                spreads.append(torch.cat([concentration(a), concentration(b)]).mean())
        activation = options.activation_norm * torch.stack(distances).mean()
        return total + activation + options.spatial_norm * torch.stack(spreads).mean()

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Take the proximal step of `lr` times lambda."""
        options = self.options
        if not options.strength or not options.proximal:
            return
        step = lr * options.strength
        for layer in self.layers:
            if options.p == 2:
                shrink_blocks(self.parameters, layer, step)
            else:
                shrink_entries(self.parameters, layer, step)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


def shrink_blocks(parameters: Mapping[str, Tensor], layer: FilterBlocks, step: float) -> None:
    """Shorten each block's 2-norm by `step`, to zero at least: the proximal operator of p=2, q=1. In place."""
    scale = (1 - step / norms(parameters, layer, 2).clamp_min(1e-30)).clamp_min(0)
    for name, ids in layer.of_row.items():
        parameter = parameters[name]
        ids = ids.to(parameter.device).view(-1, *[1] * (parameter.dim() - 1))
        parameter.mul_(torch.where(ids >= 0, scale[ids.clamp_min(0)], 1.0))


def shrink_entries(parameters: Mapping[str, Tensor], layer: FilterBlocks, step: float) -> None:
    """Soft-threshold every entry of a block by `step`: the proximal operator of p=q=1. In place."""
    for name, ids in layer.of_row.items():
        parameter = parameters[name]
        inside = (ids >= 0).to(parameter.device).view(-1, *[1] * (parameter.dim() - 1))
        parameter.copy_(torch.where(inside, nn.functional.softshrink(parameter, step), parameter))


def map_readers(model: nn.Module, channels: ChannelMap, layers: list[FilterBlocks]) -> dict[str, list[tuple[int, Tensor]]]:
    """For the first conv that reads a layer's maps: the number of its blocks, and the block of each channel read (-1: none)."""
    readers: dict[str, list[tuple[int, Tensor]]] = {}
    for layer in layers:
        group = channels.group(layer.layer)
        convs = [name for name in channels.readers(group) if isinstance(model.get_submodule(name), CONVS)]
        for reader in convs[:1]:
            blocks = blocks_of(channels.reads[reader], group, layer.of_unit)
            readers.setdefault(reader, []).append((layer.count, blocks))
    return readers


def pairs(maps: Tensor, count: int, ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two random channels of every block, squashed: [images, blocks, h, w] each; the same one twice where it is alone.

    maps: [images, channels, h, w]; ids: the block of each channel.
    """
    chosen = []
    for block in range(count):
        members = (ids == block).nonzero().flatten()
        if len(members):
            two = torch.randperm(len(members), generator=generator)[:2]
            chosen.append(members[two] if len(members) > 1 else members[[0, 0]])
    both = torch.stack(chosen, 1)
    squashed = 2 * torch.sigmoid(maps[:, both.flatten().to(maps.device)]) - 1
    a, b = squashed.clamp_min(0).chunk(2, 1)
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
