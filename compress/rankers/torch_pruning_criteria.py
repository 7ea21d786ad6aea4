"""torch-pruning's own criteria (Fang et al., "DepGraph: Towards Any Structural Pruning", 2023): taylor, bn-scale, fpgm, lamp.

Only the criteria are theirs. Which filters belong together comes from our own trace: their graph does not follow every
network (benchmarks/coupling.py). A criterion's classes read a group as items of (layer, how it is cut, indices, root
indices), and that is what they are given here.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_pruning.pruner import function, importance
from tqdm import tqdm

from ...clone import clone
from ...errors import SlimrankError
from ...processes import shared
from ..channels.groups import ChannelMap, Group
from ..network.resize import CONVS
from .scores import FilterScores

CRITERIA: dict[str, Callable[[], Callable[[Any], Tensor | None]]] = {
    "taylor": importance.GroupTaylorImportance,  # |weight * gradient| (Molchanov et al. 2019)
    "bn-scale": importance.BNScaleImportance,  # |gamma| (Liu et al. 2017, Network Slimming)
    "fpgm": importance.FPGMImportance,  # distance to the layer's other filters (He et al. 2019)
    "lamp": importance.LAMPImportance,  # squared weights over those of all larger filters (Lee et al. 2021)
}


@dataclass
class Item:
    """What their criteria unpack: `dep, idxs = item`, and `item.root_idxs`."""

    dep: Any
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def rank(
    criterion: str,
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    *,
    classes: int = 0,
    seed: int = 0,
    layers: list[str] | None = None,
) -> FilterScores:
    """Score of a unit: the criterion, averaged over the group's layers, over the group's mean (their defaults).

    `taylor` reads `batches`: gradients of the mean cross-entropy, in eval mode, one pass. The others are data-free.
    Layers that the criterion says nothing of (bn-scale without BatchNorm) are left out with a note; SlimrankError where they
    were asked for.
    """
    start = time.perf_counter()
    images = 0
    model = clone(model).eval().requires_grad_(criterion == "taylor")
    if criterion == "taylor":
        assert batches is not None
        for gradients, n in shared(partial(_gradients, model), batches, "taylor", at_once=1):
            images += n
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        if not images:
            raise SlimrankError("no images to rank on; check `data` and `limit`")
    scores, silent = {}, []
    for name in tqdm(channels.chosen(layers), desc=criterion, leave=False, disable=None):
        group = channels.group(name)
        value = CRITERIA[criterion]()(items(model, channels, group))
        if value is None:
            silent.append(name)
        else:
            scores[name] = value[: group.units].double().cpu().tolist()
    note = f"ranker {criterion} says nothing of {', '.join(silent)}: no BatchNorm follows"
    if silent and (layers or not scores):
        raise SlimrankError(f"{note}; take another ranker")
    return FilterScores(
        ranker=criterion, scores=scores, estimated=criterion == "taylor", evaluations=int(images > 0),
        seconds=time.perf_counter() - start, images=images, notes=[f"{note}, left out"] if silent else None,
    )  # fmt: skip


def _gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor | None, ...], int]:
    """Of the summed cross-entropy, by parameter; and the number of images."""
    loss = F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), len(batch[1])


taylor, bn_scale, fpgm, lamp = (partial(rank, name) for name in CRITERIA)


def items(model: nn.Module, channels: ChannelMap, group: Group) -> list[Item]:
    """Every conv, linear and BatchNorm weight that the group's units are cut from, outputs before inputs."""
    outputs: list[Item] = []
    inputs: list[Item] = []
    for tensor, axes in channels.axes.items():
        owner, _, leaf = tensor.rpartition(".")
        layer = model.get_submodule(owner)
        if leaf != "weight" or not isinstance(layer, (*CONVS, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            continue
        for axis, units in axes.items():
            mine = ((units >= group.offset) & (units < group.offset + group.units)).nonzero().flatten()
            if not len(mine):
                continue
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                cut = function.prune_batchnorm_out_channels
            elif isinstance(layer, nn.Linear):
                cut = (function.prune_linear_out_channels, function.prune_linear_in_channels)[axis]
            else:
                cut = (function.prune_conv_out_channels, function.prune_conv_in_channels)[axis]
            dep = SimpleNamespace(layer=layer, target=SimpleNamespace(module=layer), pruning_fn=cut, handler=cut)
            item = Item(dep, mine.tolist(), (units[mine] - group.offset).tolist())
            (inputs if axis else outputs).append(item)
    outputs.sort(key=lambda item: len(item.idxs) != group.units)  # the first one sets the length of the result
    return outputs + inputs
