"""Influential features as a filter ranking (Badola et al., "Decomposing the Deep", Algorithm 1).

The paper's algorithm: each training image votes for the k1 features of largest |x| at the input of the classifier, in the
histogram of its class. A feature's score here is its count of votes over all classes.

Our generalisation to inner layers: the same vote over each group's globally averaged |activation|, taken where the last
layer that reads the group reads it (so that the classifier's own features are ranked exactly as in the paper).
"""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...processes import shared
from ..channels.features import vote
from ..channels.groups import ChannelMap, Group
from ..channels.masking import captured
from . import InfluentialOptions
from .scores import FilterScores

SHARE = 0.25  # of a group's units each image votes for, unless k1 is given


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    options: InfluentialOptions,
) -> FilterScores:
    """Score of a unit: votes over all classes; ties are broken by its mean |activation| (a fraction below 1 is added).

    `batches`: images of the training split. `k1`: votes an image has in each group (default: a quarter of the units,
    at least one; where `k1` exceeds the units, all of them). One forward pass an image.
    """
    start = time.perf_counter()
    if options.k1 is not None and options.k1 < 1:
        raise SlimrankError(f"`k1` is {options.k1}, must be at least 1")
    groups = [channels.group(name) for name in channels.chosen(layers)]
    reader = {group.name: channels.readers(group)[-1] for group in groups}
    model.eval()
    with torch.inference_mode(), captured(model, sorted(set(reader.values()))) as seen:

        def respond(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
            """Labels, and responses of each group."""
            model(batch[0])
            return batch[1].cpu(), [
                response(
                    seen[reader[group.name]], channels.reads[reader[group.name]], group,
                    isinstance(model.get_submodule(reader[group.name]), nn.Linear),
                )
                for group in groups
            ]  # fmt: skip

        responses = list(shared(respond, batches, "influential"))
    if not responses:
        raise SlimrankError("no training images to rank on; check `data`")
    all_labels = torch.cat([labels for labels, _ in responses])
    scores = {}
    for number, group in enumerate(groups):
        x = torch.cat([of_groups[number] for _, of_groups in responses])
        votes = vote([(x, all_labels)], classes, min(options.k1 or max(1, round(SHARE * group.units)), group.units))
        mass = votes.mass.sum(0)
        scores[group.name] = (votes.histogram.sum(0) + mass / (mass.max() * 1.001).clamp_min(1e-30)).tolist()
    return FilterScores(
        ranker="influential", scores=scores, evaluations=1, seconds=time.perf_counter() - start, images=len(all_labels),
        options={"k1": options.k1 or "units/4"},
    )  # fmt: skip


def response(read: Tensor, units: Tensor, group: Group, linear: bool) -> Tensor:
    """Average |activation| over positions and sum it over the channels of a unit: [images, units of the group].

    `read`: what a layer reads; `units`: the global unit of each of its channels; `linear`: channels are the last axis.
    """
    size = read.abs()
    if linear:
        size = size.flatten(1, -2).mean(1) if size.dim() > 2 else size
    elif size.dim() > 2:
        size = size.flatten(2).mean(2)
    mine = (units >= group.offset) & (units < group.offset + group.units)
    out = size.new_zeros(len(size), group.units)
    return out.index_add_(1, units[mine].to(size.device) - group.offset, size[:, mine.to(size.device)]).cpu()
