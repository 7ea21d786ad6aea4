"""Scores and a budget in, a pruning plan out: pure tensors, no surgery.

One order of removal serves every budget: units are sorted by a key and dropped from the low end until the budget is met.
Scope `layer` takes the share of the group that is gone with a unit as the key (every group loses about the same share:
uniform pruning, ordered by the ranker); scope `global` compares scores across layers and never takes a group below a tenth
of its units. Scores in one unit (CAR and Shapley: accuracy) are taken as they are, per MAC that a unit costs where the
budget is MACs: the least accuracy for the most MACs goes first. Others are divided by their group's mean, so that layers
of different scale can be compared at all.

With measured `costs` (costs.py) the order follows the clock: scope `layer` cuts a group the deeper, the more milliseconds
its MACs take. The share cut goes with the time per MAC, which minimises sum(macs * share^2) at a given time, within a factor
of two either way (its square saves more time at the same MACs, and empties whole stages where memory is slow). Scope `global`
takes comparable scores per millisecond. Conv layers lose whole blocks of the runtime, except where a block saves no time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, floor

import torch
from torch import Tensor, nn

from ...errors import SlimrankError, near
from ..channels.groups import ChannelMap, Group
from ..network.resize import CONVS
from ..rankers.scores import FilterScores
from .costs import GRAIN, Costs, unit_step
from .plan import PruningPlan

SCOPES = ("layer", "global")
BUDGETS = {"ratio": "share of filters removed", "macs": "share kept", "params": "share kept", "latency": "share kept"}
NEAR = 0.02  # a budget counts as met this close below it
DEEPER = 2.0  # how much deeper, or less deep, than uniform widths a group is cut for its time


def select(
    model: nn.Module,
    channels: ChannelMap,
    scores: FilterScores,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    scope: str = "layer",
    align: int = 1,
    protect: Sequence[str] = (),
    minimum: int = 1,
    costs: Costs | None = None,
) -> PruningPlan:
    """Choose the units to keep. Exactly one budget: `ratio`, share of units removed; `macs`, `params`, `latency`, share kept.

    The budget is met from the small side, as near as single units allow; where that is further off than 2 %, the plan's
    `note` says so. `latency` is met by the fit in `costs`; the caller measures. `align`: conv layers lose channels in
    blocks, so that what stays is a multiple of it (ONNX Runtime pays for whole blocks); where blocks alone miss the budget
    by more than 2 %, multiples of 4 and then single units make up for it. `protect`: layers whose groups stay whole.
    `minimum`: units that every group keeps. Raises SlimrankError for budgets outside (0, 1), scores of another network,
    unknown layers, and a budget below what cannot be cut costs (with the least possible).
    """
    given = {"ratio": ratio, "macs": macs, "params": params, "latency": latency}
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        told = ", ".join(f"--{name} ({what})" for name, what in BUDGETS.items())
        raise SlimrankError(f"give one budget: {told}")
    ((name, value),) = chosen
    if not 0 < value < 1:
        raise SlimrankError(f"--{name} is {value}, must lie strictly between 0 and 1; 0.5 halves")
    if scope not in SCOPES:
        raise SlimrankError(f"no scope {scope!r}; {near(scope, SCOPES)}")
    if align < 1:
        raise SlimrankError(f"--align is {align}, must be at least 1 channel")
    if minimum < 1:
        raise SlimrankError(f"--min-filters is {minimum}, must be at least 1")
    whole_groups = guarded(channels, protect)
    scored = [g for g in channels.groups if g.prunable and g.name in scores.scores and g.name not in whole_groups]
    if not scored and any(group.prunable and group.name not in whole_groups for group in channels.groups):
        named = ", ".join(list(scores.scores)[:3])
        raise SlimrankError(f"the scores are of other layers ({named}) than this checkpoint can lose; rank this checkpoint")
    if not scored:
        raise SlimrankError("nothing to prune: no prunable layer has scores and is not protected; `slimrank inspect` says why")
    left = unscored(channels, scores, whole_groups)
    cost = _currency(name, model, channels, scored, costs)
    nothing = channels.removed({})
    whole = cost(nothing)
    steps = _Order(model, channels, scores, scope, align, minimum, cost, costs).steps(scored)

    def without(n: int) -> Tensor:
        gone = nothing.clone()
        gone[torch.cat([torch.empty(0, dtype=torch.long), *steps[:n]])] = True
        return gone

    target = (value if name != "ratio" else 1 - value) * whole
    low, high = 0, len(steps)
    least = cost(without(high))
    if least > target:
        share = least / whole
        edge = floor(1000 * (1 - share)) if name == "ratio" else ceil(1000 * share)  # what is told can be asked for
        limit = f"--ratio of at most {edge / 1000}" if name == "ratio" else f"--{name} of at least {edge / 1000}"
        kept = f" and all of {', '.join(protect)}" if protect else ""
        few = "one filter" if minimum == 1 else f"{minimum} filters (--min-filters)"
        few = f"a tenth of the filters, as --scope global keeps, and at least {few}" if scope == "global" else few
        rules = f"with {few} left in each layer that can be cut{kept}{f' ({left})' if left else ''}"
        if edge >= 1000 or (name == "ratio" and edge <= 0):
            raise SlimrankError(f"--{name} {value} is out of reach: {rules}, nothing can be cut at all")
        raise OutOfReach(f"--{name} {value} is out of reach: {rules}, the least is a {limit}", edge / 1000)
    while low < high:  # fewest removals that meet the target
        middle = (low + high) // 2
        low, high = (low, middle) if cost(without(middle)) <= target else (middle + 1, high)
    gone = without(low)
    quads = [part for step in steps[:low] for part in step.split(GRAIN)] if align > 1 else []
    singles = [unit for step in steps[:low] for unit in step.split(1)]
    for candidates in (steps[:low], quads, singles):  # what still fits comes back, best first
        for step in reversed(candidates):
            if cost(gone) >= (1 - NEAR) * target:
                break
            back = gone.clone()
            back[step] = False
            if cost(back) <= target:
                gone = back
    plan = _plan(model, channels, scored, gone, scores.ranker, scope, {name: value, "align": align})
    reached = cost(gone) / whole
    notes = [left] if left else []
    if cost(gone) < (1 - NEAR) * target:
        reached = 1 - reached if name == "ratio" else reached
        notes.insert(0, f"{reached:.3f} for --{name} {value}: every filter that is gone would, put back, overshoot it")
    return replace(plan, note="; ".join(notes))


def guarded(channels: ChannelMap, protect: Sequence[str]) -> set[str]:
    """The groups of protected layers, by name. Raises SlimrankError for a layer that is not there or loses nothing anyway."""
    groups = [(layer, channels.group(layer)) for layer in protect]
    for layer, group in groups:
        if not group.prunable:
            raise SlimrankError(
                f"--protect {layer}: no filter of it is ever cut ({group.why}); leave it out, or name another layer"
            )
    return {group.name for _, group in groups}


def unscored(channels: ChannelMap, scores: FilterScores, protected: set[str]) -> str:
    """What stays whole for want of scores, in words; empty where all that may be cut has them."""
    names = [g.name for g in channels.groups if g.prunable and g.name not in protected and g.name not in scores.scores]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return f"no scores for {shown}: left whole" if names else ""


class OutOfReach(SlimrankError):
    """A budget that cannot be met; `least` is the nearest that can."""

    def __init__(self, message: str, least: float):
        super().__init__(message)
        self.least = least


def _currency(
    name: str, model: nn.Module, channels: ChannelMap, scored: list[Group], costs: Costs | None
) -> Callable[[Tensor], float]:
    """What the network costs without the units in `gone`, in the budget's own currency."""
    units = sum(group.units for group in scored)
    if name == "latency":
        assert costs is not None, "a latency budget needs measured costs"
        return lambda gone: costs.share(model, channels, gone)
    if name == "ratio":
        return lambda gone: units - int(gone.sum())
    return lambda gone: channels.macs(model, gone) if name == "macs" else channels.params(model, gone)


def uniform(model: nn.Module, channels: ChannelMap, share: float) -> PruningPlan:
    """The plain rival: every group cut to the same share of its width, MACs nearest below `share`. Which units is arbitrary."""
    return select(model, channels, FilterScores.flat("uniform", channels), macs=share, scope="layer")


def runtime_block() -> int:
    """Channels that ONNX Runtime's CPU convolutions pay for at once: 16 with AVX-512, else 8."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


class _Order:
    """Steps of removal (global unit numbers), first to go first.

    A step is a block that leaves an aligned width, or a single unit where the width is not aligned anyway. Breaking an
    aligned width saves MACs but costs time, so these steps come last of all. Between equals, filters of a layer on its own
    go before those of a residual stream, which many layers read.
    """

    def __init__(
        self, model: nn.Module, channels: ChannelMap, scores: FilterScores, scope: str, align: int, minimum: int,
        cost: Callable[[Tensor], float], costs: Costs | None,
    ):  # fmt: skip
        self.model, self.channels, self.scores, self.scope, self.align = model, channels, scores, scope, align
        self.minimum, self.cost, self.costs = minimum, cost, costs
        self.nothing = channels.removed({})

    def steps(self, groups: list[Group]) -> list[Tensor]:
        steps = [step for group in groups for step in self.of(group)]
        return [units for _, units in sorted(steps, key=lambda step: step[0])]

    def of(self, group: Group) -> list[tuple[tuple[bool, float, int], Tensor]]:
        score = torch.tensor(self.scores.scores[group.name], dtype=torch.float64)
        if len(score) != group.units:
            raise SlimrankError(
                f"scores for {group.name} count {len(score)} filters, the network has {group.units}; rank this checkpoint"
            )
        score[list(group.fixed)] = torch.inf
        order, kept = self.spared(group, [unit for unit in self.scores.order(group.name) if unit not in group.fixed])
        ranked = torch.tensor([*order, *kept, *group.fixed])
        floor = max(self.minimum, round(0.1 * group.units) if self.scope == "global" else 1)
        removable = min(len(order), group.units - floor)
        key = self.key(group, score, ranked)
        block, grain = (unit_step(self.model, group, channels) for channels in (self.align, min(self.align, GRAIN)))
        if self.costs and self.time(group) * block < 1e-4:
            block = grain  # the clock says that a block saves nothing
        steps = []
        start, broken = 0, False
        while start < removable:
            step = (
                grain if self.costs and group.units - start <= block else block
            )  # within the first block inputs are paid singly
            end = start + ((group.units - start) % step or step)
            aligned = end <= removable
            end = end if aligned else start + 1
            breaks = not aligned and (group.units - start) % step == 0
            steps.append(((breaks or broken, float(key[start:end].max()), len(group.layers)), ranked[start:end] + group.offset))
            broken = broken or breaks
            start = end
        return steps

    def spared(self, group: Group, order: list[int]) -> tuple[list[int], list[int]]:
        """`order` without the units that must stay so that no layer runs empty, and these: the best `minimum` of each layer
        that writes or reads some of the group's units and nothing else (a part of a concat that meets a sum)."""
        parts: list[set[int]] = []
        for units in (*self.channels.writes.values(), *self.channels.reads.values()):
            local = set((units - group.offset).tolist())
            if local and min(local) >= 0 and max(local) < group.units and len(local) < group.units and local not in parts:
                parts.append(local)
        left = [len(part) for part in parts]
        gone, kept = [], []
        for unit in order:
            mine = [i for i, part in enumerate(parts) if unit in part]
            if any(left[i] <= self.minimum for i in mine):
                kept.append(unit)
                continue
            gone.append(unit)
            for i in mine:
                left[i] -= 1
        return gone, kept

    def key(self, group: Group, score: Tensor, ranked: Tensor) -> Tensor:
        """[units] in order of removal: what decides between groups."""
        if self.scope == "layer":  # the share of the group that is gone after it
            return (torch.arange(group.units, dtype=torch.float64) + 1) / group.units * self.shallower(group)
        if not self.scores.comparable:
            return score[ranked] / score[torch.isfinite(score)].abs().mean().clamp_min(1e-30)
        cost = self.time(group) if self.costs else max(1, self.saved(self.cost, group))
        # of what gains by going, too, the costly goes first
        return torch.where(score[ranked] < 0, score[ranked] * cost, score[ranked] / cost)

    def shallower(self, group: Group) -> float:
        """1 without costs; below 1 for a group whose MACs take more time than most."""
        if not self.costs:
            return 1.0
        macs = self.saved(lambda gone: self.channels.macs(self.model, gone), group)
        share = macs / self.channels.macs(self.model, self.nothing)
        return min(DEEPER, max(1 / DEEPER, share / self.time(group)))

    def saved(self, cost: Callable[[Tensor], float], group: Group) -> float:
        """What one unit of a group costs."""
        gone = self.nothing.clone()
        gone[group.offset] = True
        return cost(self.nothing) - cost(gone)

    def time(self, group: Group) -> float:
        """Share of the time that one unit of a group takes."""
        assert self.costs is not None
        return self.costs.saving(self.model, self.channels, group)


def _plan(model, channels, groups, gone, ranker, scope, budget) -> PruningPlan:
    convs = [g.name for g in groups if isinstance(model.get_submodule(g.name), CONVS)]
    before = channels.macs(model, channels.removed({}))
    keep, widths = {}, {}
    for group in groups:
        kept = (~gone[group.offset : group.offset + group.units]).nonzero().flatten().tolist()
        keep[group.name] = kept
        widths[group.name] = [group.units, len(kept)]
    return PruningPlan(keep, before, channels.macs(model, gone), budget, scope, ranker, widths, convs)
