"""A latency budget, held to by the clock.

The plan that the fitted layer costs promise is exported and timed against the whole network in one interleaved run, and the
promise is corrected until the measurement agrees.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from torch import Tensor, nn

from ...evaluate.latency import compare
from ...evaluate.timing import Timing
from ...export.int8 import int8_to_time
from ...export.to_onnx import export
from ...files import Scratch
from ..channels.groups import ChannelMap
from .plan import PruningPlan
from .select import OutOfReach
from .surgery import cut as sliced

ROUNDS = 8  # of promise and measurement
CLOSE = 0.02  # a measured time this near to the target will do
FAR = 0.05  # a measured time further from the target than this is told


@dataclass(frozen=True)
class Candidate:
    """A plan that was timed: what was asked of the fit, and the share of the time that was measured."""

    asked: float
    share: float
    plan: PruningPlan


def within_time(
    goal: float,
    promised: Callable[[float], PruningPlan],
    model: nn.Module,
    channels: ChannelMap,
    example: Tensor,
    timing: Timing,
    head_share: float,
    int8: bool = False,
) -> PruningPlan:
    """Find the plan whose measured share of the dense network's time is nearest to `goal`.

    `promised(share)`: the plan that takes this share by the fitted costs; raises OutOfReach. `head_share`: the classifier's
    own share of the time, for the error. `int8`: the cut network is timed in int8, the dense one in float. Raises OutOfReach
    where the smallest cut that the rules allow takes too long.
    """
    timed: list[Candidate] = []
    asked = goal
    with Scratch() as folder:
        dense = export(model, example, Path(folder) / "dense.onnx", {})
        while len(timed) < ROUNDS:
            try:
                plan = promised(asked)
            except OutOfReach as error:  # by the fit; the clock decides
                if timed and error.least >= min(candidate.asked for candidate in timed):
                    break
                asked = error.least
                plan = promised(asked)
            if any(plan.keep == candidate.plan.keep for candidate in timed):
                break
            smaller = to_time(
                sliced(model, channels, channels.removed(plan.keep)), example, Path(folder) / "cut.onnx", int8
            )  # fmt: skip
            timed.append(Candidate(asked, time_share(dense, smaller, timing), plan))
            if abs(timed[-1].share / goal - 1) <= CLOSE:
                break
            asked = _next_target(goal, timed)
    nearest = min(timed, key=lambda candidate: abs(candidate.share - goal))
    if nearest.share > (1 + FAR) * goal and not any(candidate.share < goal for candidate in timed):
        raise OutOfReach(
            f"`latency` {goal} is out of reach: the smallest cut that the rules allow takes {nearest.share:.3f} of the time, "
            f"measured (the classifier alone about {head_share:.3f}); allow more, or protect less",
            nearest.share,
        )
    note = f"measured {nearest.share:.3f} of the time{' in int8' if int8 else ''} for `latency` {goal}"
    if abs(nearest.share / goal - 1) > FAR:
        note += f": the nearest of {len(timed)} cuts that were timed; whole blocks of channels come no nearer"
    budget = {**nearest.plan.budget, "latency": goal, "measured": round(nearest.share, 4)}
    return replace(nearest.plan, budget=budget, note=note)


def _next_target(goal: float, timed: list[Candidate]) -> float:
    """Next target for the cost model, interpolated between the nearest measured candidates on either side of the goal."""
    below = max((c for c in timed if c.share < goal), default=None, key=lambda candidate: candidate.share)
    above = min((c for c in timed if c.share >= goal), default=None, key=lambda candidate: candidate.share)
    if below is None or above is None:
        return min(0.999, timed[-1].asked * goal / timed[-1].share)
    place = min(0.85, max(0.15, (goal - below.share) / (above.share - below.share)))
    return below.asked + place * (above.asked - below.asked)


def to_time(model: nn.Module, example: Tensor, path: Path, int8: bool) -> Path:
    """Export a network for its time alone; `int8`: all of it in int8."""
    export(model, example, path, {})
    return int8_to_time(path, path.with_name(f"int8-{path.name}"), example) if int8 else path


def time_share(dense: Path, smaller: Path, timing: Timing) -> float:
    """Time of one ONNX file over another's: geometric mean over the speedups of one interleaved run."""
    timed = compare({"dense": dense, "smaller": smaller}, batches=timing.batch, threads=timing.threads[:1])
    return prod(1 / row.speedup for row in timed.speedups) ** (1 / len(timed.speedups))
