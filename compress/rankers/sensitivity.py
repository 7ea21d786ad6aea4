"""Accuracy that each layer costs when it alone is cut, at growing shares of its filters, before any fine-tuning.

The figure of Li et al., "Pruning Filters for Efficient ConvNets", section 3.2: layers whose accuracy falls early are
sensitive, and a global budget should spare them.
"""

import time
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...processes import dealt
from ..channels.groups import ChannelMap
from ..coalitions import MEMORY
from ..coalitions.activations import Relay
from ..coalitions.game import Coalitions, Played
from .scores import Curve, FilterScores

CUT_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)


def sensitivity(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    ranked: FilterScores,
    *,
    classes: int,
    layers: list[str] | None = None,
    memory: int = MEMORY,
) -> FilterScores:
    """Cut each layer alone by every share in CUT_SHARES, least important first by `ranked`, and count the images left right.

    What comes back is a scores file like any other: a unit's score is the accuracy lost once it and all before it are gone
    (between the measured points on a straight line, never less than that of one removed earlier), so that layers compare
    and scope `global` can use it. `sensitivity[layer]`: [share removed, units removed, top-1] for each point, 0 first.
    The accuracy is that of the masked network, which is the sliced one's. `batches`: images not tested on.
    """
    start = time.perf_counter()
    relay = Relay()

    def of_layer(name: str) -> tuple[Curve, list[float], list[float], Played]:
        """The curve, the scores and ties of the units, and what it took."""
        group = channels.group(name)
        order = [unit for unit in ranked.order(name) if unit not in group.fixed]
        most = group.units - max(1, len(group.fixed))
        counts = sorted({0, *(min(most, round(share * group.units)) for share in CUT_SHARES), most})
        masks = torch.ones(len(counts), group.units, dtype=torch.bool)
        for row, n in enumerate(counts):
            masks[row, order[:n]] = False
        game = Coalitions(model, channels, name, batches, classes=classes, memory=memory, relay=relay)
        tops = (game.play(masks).correct.double() / game.images).tolist()
        lost = _lost(counts, tops)
        scores, ties = [max(lost)] * group.units, [float(group.units)] * group.units
        for place, unit in enumerate(order):
            scores[unit], ties[unit] = lost[min(place, most - 1)], float(place)
        return [[n / group.units, n, top] for n, top in zip(counts, tops, strict=True)], scores, ties, game.played

    names = [name for name in channels.chosen(layers, masked=True) if name in ranked.scores]
    every = dict(zip(names, dealt(of_layer, names, "sensitivity"), strict=True))
    played = Played.sum(row[3] for row in every.values())
    return FilterScores(
        ranker=f"sensitivity of {ranked.ranker}", scores={name: row[1] for name, row in every.items()}, estimated=True,
        evaluations=played.evaluations, seconds=time.perf_counter() - start, images=played.images, seed=ranked.seed,
        options={"ranker": ranked.ranker}, ties={name: row[2] for name, row in every.items()}, comparable=True,
        sensitivity={name: row[0] for name, row in every.items()}, notes=list(played.notes) or None,
    )  # fmt: skip


def _lost(counts: list[int], tops: list[float]) -> list[float]:
    """Accuracy lost after each removal, 1 to the last, rising."""
    lost: list[float] = []
    worst = 0.0
    for (a, top_a), (b, top_b) in pairwise(zip(counts, tops, strict=True)):
        for n in range(a + 1, b + 1):
            worst = max(worst, tops[0] - (top_a + (top_b - top_a) * (n - a) / (b - a)))
            lost.append(worst)
    return lost


def sensitivity_table(scores: FilterScores) -> str:
    """Format each layer's top-1, or the error, at each share removed. `scores`: of `sensitivity` or ranker reconstruct."""
    what = "error" if scores.error is not None else "top-1"
    split = "training" if scores.error is not None else "validation"
    rows = [f"{scores.ranker}: {what} on {scores.images:,} {split} images, {scores.seconds:.1f} s; share of filters removed:"]
    rows.append(f"  {'layer':32} filters   none  " + "  ".join(f"{share:6.1%}" for share in CUT_SHARES))
    for name, points in (scores.error or scores.sensitivity or {}).items():
        shown = [round(share * len(scores.scores[name])) for share in CUT_SHARES]
        figures = {int(n): figure for _, n, figure in points}
        cells = "  ".join(f"{figures[n]:6.4f}" if n in figures else "     -" for n in shown)
        rows.append(f"  {name:32} {len(scores.scores[name]):7} {figures[0]:6.4f}  {cells}")
    return "\n".join(rows + [f"  note: {note}" for note in scores.notes or []])
