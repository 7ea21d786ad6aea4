"""Cut the blocks of filters that block norm brought to zero: the same logits from fewer filters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..channels.groups import ChannelMap
from ..channels.masking import captured
from ..pruning.surgery import cut
from .block_norm import filter_blocks, norms
from .recipe import BlockNorm


@dataclass(frozen=True)
class Vanished:
    """Block norm after training. `relevance[layer]`: ||w_g||_p of each block; `gone[layer]`: the blocks that are zero.

    `filters` could be cut with them. `fed[layer]`: filters of such blocks that a shortcut without parameters still feeds, which
    stay. `kept_alive`: layers all of whose blocks vanished; one filter of theirs stays, since a layer cannot be empty.
    """

    relevance: dict[str, list[float]]
    gone: dict[str, list[int]]
    kept_alive: list[str]
    fed: dict[str, int]
    filters: int

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def without_vanished(model: nn.Module, channels: ChannelMap, options: BlockNorm, example: Tensor) -> tuple[nn.Module, Vanished]:
    """A copy without the blocks that are zero (the model itself where none is). `example`: a few images, to see silence."""
    result, units = vanished(model, channels, options, example)
    return (cut(model, channels, units) if result.filters else model), result


def vanished(model: nn.Module, channels: ChannelMap, options: BlockNorm, example: Tensor) -> tuple[Vanished, Tensor]:
    """Which blocks are zero, and the units to cut with them (boolean, [all units]): those that are read as zero everywhere."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    relevance, gone, kept_alive, fed = {}, {}, [], {}
    units, nonzero = channels.removed({}), read_nonzero(model, channels, example)
    for layer in filter_blocks(model, channels, options.groups):
        size = norms(parameters, layer, options.p)
        relevance[layer.layer] = [float(s) for s in size]
        zero = (size == 0).nonzero().flatten().tolist()
        if not zero:
            continue
        gone[layer.layer] = zero
        group = channels.group(layer.layer)
        own = slice(group.offset, group.offset + group.units)
        cuttable = torch.isin(layer.of_unit, torch.tensor(zero))
        cuttable[list(group.fixed)] = False
        still_fed = cuttable & nonzero[own]
        if bool(still_fed.any()):
            fed[layer.layer] = int(still_fed.sum())
            cuttable &= ~still_fed
        if bool(cuttable.all()):
            cuttable[0] = False
            kept_alive.append(layer.layer)
        units[own] = cuttable
    return Vanished(relevance, gone, kept_alive, fed, int(units.sum())), units


def read_nonzero(model: nn.Module, channels: ChannelMap, example: Tensor) -> Tensor:
    """Boolean [all units]: whether a layer reads anything but zero from a unit on these images, [images, ...]."""
    nonzero = channels.removed({})
    with torch.inference_mode(), captured(model.eval(), list(channels.reads)) as seen:
        model(example)
        for name, units in channels.reads.items():
            axis = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
            x = seen[name].movedim(axis, 0).flatten(1)
            nonzero[units[(x.abs().amax(1).cpu() > 0) & (units >= 0)]] = True
    return nonzero
