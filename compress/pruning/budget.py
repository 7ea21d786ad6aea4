"""From scores and a budget to a plan, whatever the budget is; what needs a clock or a trial training happens here.

A latency budget is held to by the clock: the plan that the fitted costs promise is exported and timed against the whole
network in one interleaved run, and the promise is corrected until the measurement agrees. A budget in accuracy is found by
bisection: each trial cut is fine-tuned as the real one will be, and judged on validation images.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.latency import check_settings, compare
from ...export.to_onnx import export
from ...files import read_json, write_json
from ..channels.groups import ChannelMap
from ..channels.tracing import channel_map
from ..rankers.scores import FilterScores
from .costs import Costs, measure
from .plan import PruningPlan
from .select import OutOfReach, guarded, runtime_block, select, unscored
from .surgery import cut as sliced

BUDGETS = ("ratio", "macs", "params", "latency", "max_drop")
ROUNDS = 8  # of promise and measurement
CLOSE = 0.02  # a measured time this near to the target will do
TRIALS = 6  # of a budget in accuracy
FINEST = 1 / 64  # of the MACs


@dataclass(frozen=True)
class Cut:
    """How much to cut, and by which rules. One budget: `ratio` is the share of filters removed; `macs`, `params`, `latency`
    the share kept; `max_drop` the top-1 on validation that may be lost, 0.01 being one point. `timed`: cut where time goes,
    whatever the budget. `batches` and `threads`: what is timed."""

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    scope: str = "layer"
    align: int | None = None
    protect: tuple[str, ...] = ()
    minimum: int = 1
    timed: bool = False
    batches: tuple[int, ...] = (1,)
    threads: int = 1
    provider: str = "cpu"

    def check(self) -> "Cut":
        """Raise SlimrankError for what no network could be cut to."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SlimrankError(
                f"give one budget, not {len(given)}: --ratio R (share of filters removed), --macs F, --params F or --latency F "
                "(share kept), or --max-drop D (top-1 that may be lost)"
            )
        for name in given:
            value = getattr(self, name)
            if name != "max_drop" and not 0 < value < 1:
                raise SlimrankError(f"--{name} is {value}, must lie strictly between 0 and 1; 0.5 halves")
        if self.minimum < 1:
            raise SlimrankError(f"--min-filters is {self.minimum}, must be at least 1")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise SlimrankError(f"--max-drop is {self.max_drop}, must lie in 0..1; 0.01 is one point of top-1")
        if (self.latency is not None or self.timed) and self.provider != "cpu":
            raise SlimrankError("layers are timed on the CPU provider only; leave out --providers, --latency or --timed")
        check_settings([self.provider], self.batches, [self.threads])
        return self

    @property
    def block(self) -> int:
        return runtime_block() if self.align is None else self.align

    def costs(self, model: nn.Module, channels: ChannelMap, example: Tensor) -> Costs | None:
        """What the layers cost, where this cut asks for it."""
        if self.latency is None and not self.timed:
            return None
        return measure(model, channels, example, block=runtime_block(), batches=self.batches, threads=self.threads)

    def step(self, number: int, steps: int, reached: float = 1.0) -> "Cut":
        """The budget of one of several equal steps, relative to the network that the steps before have left.

        `reached`: what that network is of the first one, in the budget's currency (of the filters for `ratio`).
        """
        if steps == 1:
            return self
        if self.max_drop is not None:
            raise SlimrankError("--max-drop is found by one-shot cuts; leave --steps out, or give another budget")
        name, goal = self.budget
        kept = min(0.999, (1 - goal if name == "ratio" else goal) ** ((number + 1) / steps) / reached)  # some is always cut
        return replace(self, **{name: 1 - kept if name == "ratio" else kept})

    @property
    def budget(self) -> tuple[str, float]:
        """Name and value of the one that was given."""
        return next((name, value) for name in BUDGETS if (value := getattr(self, name)) is not None)


def plan(
    model: nn.Module, channels: ChannelMap, scores: FilterScores, cut: Cut, example: Tensor, costs: Costs | None = None
) -> PruningPlan:
    """The cut that `cut` asks for, any budget but `max_drop`. `example`: [images, channels, height, width].

    `costs`: measured before; None measures them where they are needed. Raises SlimrankError as `select` does.
    """
    cut.check()
    costs = costs or cut.costs(model, channels, example)
    if cut.latency is not None:
        assert costs is not None
        return _by_the_clock(model, channels, scores, cut, example, costs)
    return _select(model, channels, scores, cut, costs, ratio=cut.ratio, macs=cut.macs, params=cut.params)


def _select(model, channels, scores, cut: Cut, costs: Costs | None, **budget: float | None) -> PruningPlan:
    return select(
        model,
        channels,
        scores,
        **budget,
        scope=cut.scope,
        align=cut.block,
        protect=cut.protect,
        minimum=cut.minimum,
        costs=costs,
    )


def _by_the_clock(model, channels, scores, cut: Cut, example: Tensor, costs: Costs) -> PruningPlan:
    goal = cut.latency
    assert goal is not None
    head = costs.terms[channels.classifier][0] if channels.classifier in costs.terms else 0.0
    told: list[tuple[float, float, PruningPlan]] = []  # asked of the fit, measured, plan
    ask = goal
    with tempfile.TemporaryDirectory() as folder:
        dense = export(model, example, Path(folder) / "dense.onnx", {})
        while len(told) < ROUNDS:
            try:
                found = _select(model, channels, scores, cut, costs, latency=ask)
            except OutOfReach as error:  # by the fit; the clock decides
                if told and error.least >= min(asked for asked, _, _ in told):
                    break
                ask = error.least
                found = _select(model, channels, scores, cut, costs, latency=ask)
            if any(found.keep == plan.keep for _, _, plan in told):
                break
            path = export(sliced(model, channels, channels.removed(found.keep)), example, Path(folder) / "cut.onnx", {})
            told.append((ask, time_share(dense, path, cut.batches, cut.threads), found))
            if abs(told[-1][1] / goal - 1) <= CLOSE:
                break
            ask = _next(goal, [(asked, share) for asked, share, _ in told])
    _, share, found = min(told, key=lambda row: abs(row[1] - goal))
    if share > 1.05 * goal and not any(row[1] < goal for row in told):
        raise SlimrankError(
            f"--latency {goal} is out of reach: the smallest cut that the rules allow takes {share:.3f} of the time, measured "
            f"(the classifier alone about {head:.3f}); allow more, or protect less"
        )
    note = f"measured {share:.3f} of the time for --latency {goal}"
    if abs(share / goal - 1) > 0.05:
        note += f": the nearest of {len(told)} cuts that were timed; whole blocks of channels come no nearer"
    left = unscored(channels, scores, guarded(channels, cut.protect))
    note += f"; {left}" if left else ""
    return replace(found, budget={**found.budget, "latency": goal, "measured": round(share, 4)}, note=note)


def _next(goal: float, told: list[tuple[float, float]]) -> float:
    """What to ask of the fit after [asked, measured] pairs: between the nearest on either side, else in proportion."""
    below = max((row for row in told if row[1] < goal), default=None, key=lambda row: row[1])
    above = min((row for row in told if row[1] >= goal), default=None, key=lambda row: row[1])
    if below is None or above is None:
        asked, share = told[-1]
        return min(0.999, asked * goal / share)
    place = min(0.85, max(0.15, (goal - below[1]) / (above[1] - below[1])))
    return below[0] + place * (above[0] - below[0])


def reached_by(cut: Cut, first: nn.Module, now: nn.Module, keep: Mapping[str, Sequence[int]], example: Tensor) -> float:
    """What a network that was cut is of the first one, in the budget's own currency; `keep` as in PruningPlan."""
    name, _ = cut.budget
    channels = channel_map(first, example[:1])
    gone = channels.removed(keep)
    if name == "latency":
        with tempfile.TemporaryDirectory() as folder:
            paths = [export(model, example, Path(folder) / f"{i}.onnx", {}) for i, model in enumerate((first, now))]
            return time_share(paths[0], paths[1], cut.batches, cut.threads)
    if name == "ratio":
        return sum(map(len, keep.values())) / sum(channels.group(layer).units for layer in keep)
    cost = channels.macs if name == "macs" else channels.params
    return cost(first, gone) / cost(first, channels.removed({}))


def time_share(dense: Path, smaller: Path, batches: Sequence[int], threads: int) -> float:
    """Time of one ONNX file over another's: geometric mean over batch sizes of medians in one interleaved run."""
    found = compare({"dense": dense, "smaller": smaller}, batches=batches, threads=(threads,))
    return prod(1 / s.speedup for s in found.speedups) ** (1 / len(found.speedups))


def kept_trials(trial: Callable[[Cut], float], path: Path) -> Callable[[Cut], float]:
    """`trial`, its results kept in a JSON file by share of the MACs: a search that was killed goes on after the last one.

    Raises SlimrankError for a file that holds anything but accuracies.
    """
    remedy = "remove it, and its trials are run again"
    known = read_json(path, "the trials in", remedy) if path.exists() else {}
    if not all(isinstance(top1, float) and 0 <= top1 <= 1 for top1 in known.values()):
        raise SlimrankError(f"{path} is damaged; {remedy}")

    def kept(cut: Cut) -> float:
        share = str(cut.macs)
        if share not in known:
            known[share] = trial(cut)
            write_json(path, known)
        return known[share]

    return kept


def within_drop(
    cut: Cut, trial: Callable[[Cut], float], top1: float, say: Callable[[str], None] = lambda line: None
) -> tuple[Cut, list[list[float]]]:
    """The smallest share of the MACs whose trial keeps `top1` less `max_drop`, to a 64th, in TRIALS trials at most.

    `trial`: cuts as told, fine-tunes, and returns top-1 on validation. Returns the cut and [share of MACs, top-1] of every
    trial. Raises SlimrankError where even the mildest trial loses more.
    """
    assert cut.max_drop is not None
    fails, holds = 0.0, 1.0
    trials: list[list[float]] = []
    refusal = ""
    for _ in range(TRIALS):
        if holds - fails <= FINEST:
            break
        share = (fails + holds) / 2
        try:
            reached = trial(replace(cut, max_drop=None, macs=share))
        except SlimrankError as error:
            if "out of reach" not in str(error):
                raise
            fails, refusal = share, str(error)
            continue
        trials.append([share, reached])
        say(f"trial: {share:.1%} of the MACs, top-1 {reached:.4f} on validation")
        fails, holds = (fails, share) if reached >= top1 - cut.max_drop - 1e-9 else (share, holds)
    if holds == 1.0:
        if not trials:
            raise SlimrankError(f"--max-drop {cut.max_drop}: nothing can be cut ({refusal})")
        least, reached = max(trials)
        raise SlimrankError(
            f"--max-drop {cut.max_drop} is out of reach: {least:.1%} of the MACs already loses {top1 - reached:.4f} of "
            f"{top1:.4f}; fine-tune longer (--epochs), or allow more"
        )
    return replace(cut, max_drop=None, macs=holds), trials
