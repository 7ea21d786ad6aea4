"""From scores and a budget to a plan, whatever the budget is but `max_drop` (accuracy_budget.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.timing import Timing
from ...files import Scratch
from ..channels.groups import ChannelMap
from ..rankers.scores import FilterScores
from .costs import Costs, measure_costs
from .latency_budget import time_share, to_time, within_time
from .options import Cut
from .plan import PruningPlan
from .select import guarded, runtime_block, select, unscored

ONE = Timing(batch=(1,))


def costs_for(cut: Cut, model: nn.Module, channels: ChannelMap, example: Tensor, timing: Timing = ONE) -> Costs | None:
    """What the layers cost in ONNX Runtime, where this cut is decided by it; else None."""
    if not cut.clocked:
        return None
    block = runtime_block()
    return measure_costs(
        model, channels, example, block=block, batches=timing.batch, threads=timing.threads[0], int8=cut.int8
    )  # fmt: skip


def plan(
    model: nn.Module,
    channels: ChannelMap,
    scores: FilterScores,
    cut: Cut,
    example: Tensor,
    *,
    costs: Costs | None = None,
    timing: Timing = ONE,
) -> PruningPlan:
    """Plan the cut that is asked for. `example`: [images, channels, height, width].

    `costs`: measured before; None measures them where they are needed. Raises SlimrankError as `select` does.
    """
    cut.check(timing)
    if cut.max_drop is not None:
        raise SlimrankError("`max_drop` is found by trial cuts (accuracy_budget.within_drop); give a share to plan one")
    costs = costs or costs_for(cut, model, channels, example, timing)

    def selected(**budget: float | None) -> PruningPlan:
        return select(
            model, channels, scores, **budget, scope=cut.scope, align=runtime_block() if cut.align is None else cut.align,
            protect=cut.protect, min_filters=cut.min_filters, costs=costs,
        )  # fmt: skip

    if cut.latency is None:
        return selected(ratio=cut.ratio, macs=cut.macs, params=cut.params)
    assert costs is not None
    head_share = costs.terms[channels.classifier][0] if channels.classifier in costs.terms else 0.0
    chosen = within_time(
        cut.latency, lambda share: selected(latency=share), model, channels, example, timing, head_share,
        cut.int8,
    )  # fmt: skip
    left_whole = unscored(channels, scores, guarded(channels, cut.protect))
    return replace(chosen, note="; ".join(filter(None, [chosen.note, left_whole])))


def reached_by(
    cut: Cut,
    dense: nn.Module,
    channels: ChannelMap,
    smaller: nn.Module,
    keep: Mapping[str, Sequence[int]],
    example: Tensor,
    timing: Timing = ONE,
) -> float:
    """Share of the dense network that a smaller one is, in the budget's own currency.

    `channels` are the dense network's, `keep` as in PruningPlan, in its numbers. A latency is measured.
    """
    name, _ = cut.budget
    gone = channels.removed(keep)
    if name == "latency":
        with Scratch() as folder:
            files = (
                to_time(dense, example, Path(folder) / "dense.onnx", False),
                to_time(smaller, example, Path(folder) / "cut.onnx", cut.int8),
            )
            return time_share(*files, timing)
    if name == "ratio":
        return sum(map(len, keep.values())) / sum(channels.group(layer).units for layer in keep)
    cost = channels.macs if name == "macs" else channels.params
    return cost(dense, gone) / cost(dense, channels.removed({}))
