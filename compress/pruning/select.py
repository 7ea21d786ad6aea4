"""Scores and a budget in, a pruning plan out: pure tensors, no surgery.

One order of removal serves every budget: units are sorted by a key and dropped from the low end until the budget is met.
Scope `layer` takes the share of the group that is gone with a unit as the key (every group loses about the same share:
uniform pruning, ordered by the ranker); scope `global` compares scores across layers and never takes a group below a tenth
of its units. Scores in one unit (CAR and Shapley: accuracy; reconstruct: error of the logits) are taken as they are, per MAC
that a unit costs where the budget is MACs, in the network as it is by then: the least accuracy for the most MACs goes first.
Others are divided by their group's mean, so that layers of different scale can be compared at all.

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
from .costs import GRAIN, Costs
from .order import RemovalOrder
from .plan import PruningPlan

SCOPES = ("layer", "global")
BUDGETS = {"ratio": "share of filters removed", "macs": "share kept", "params": "share kept", "latency": "share kept"}
NEAR = 0.02  # a budget counts as met this close below it


class OutOfReach(SlimrankError):
    """A budget that cannot be met; `least` is the nearest that can."""

    def __init__(self, message: str, least: float):
        super().__init__(message)
        self.least = least


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
    min_filters: int = 1,
    costs: Costs | None = None,
) -> PruningPlan:
    """Choose the units to keep. Exactly one budget: `ratio`, share of units removed; `macs`, `params`, `latency`, share kept.

    The budget is met from the small side, as near as single units allow; where that is further off than 2 %, the plan's
    `note` says so. `latency` is met by the fit in `costs`; the caller measures. `align`: conv layers lose channels in
    blocks, so that what stays is a multiple of it (ONNX Runtime pays for whole blocks); where blocks alone miss the budget
    by more than 2 %, multiples of 4 and then single units make up for it. `protect`: layers whose groups stay whole.
    `min_filters`: units that every group keeps. Raises SlimrankError for budgets outside (0, 1), scores of another network,
    unknown layers, and a budget below what cannot be cut costs (with the least possible).
    """
    name, value = _checked_budget({"ratio": ratio, "macs": macs, "params": params, "latency": latency})
    if scope not in SCOPES:
        raise SlimrankError(f"no scope {scope!r}; {near(scope, SCOPES)}")
    if align < 1:
        raise SlimrankError(f"`align` is {align}, must be at least 1 channel")
    if min_filters < 1:
        raise SlimrankError(f"`min_filters` is {min_filters}, must be at least 1")
    protected = guarded(channels, protect)
    groups = _prunable(channels, scores, protected)
    left_whole = unscored(channels, scores, protected)
    cost = _currency(name, model, channels, groups, costs)
    nothing = channels.removed({})
    dense_cost = cost(nothing)
    target = (value if name != "ratio" else 1 - value) * dense_cost
    steps = RemovalOrder(model, channels, scores, scope, align, min_filters, cost, costs).steps(groups)

    def without(n: int) -> Tensor:
        gone = nothing.clone()
        gone[torch.cat([torch.empty(0, dtype=torch.long), *steps[:n]])] = True
        return gone

    least = cost(without(len(steps)))
    if least > target:
        rules = _rules(scope, min_filters, protect, left_whole)
        raise _out_of_reach(name, value, least / dense_cost, rules)
    low, high = 0, len(steps)
    while low < high:  # fewest removals that meet the target
        middle = (low + high) // 2
        low, high = (low, middle) if cost(without(middle)) <= target else (middle + 1, high)
    gone = _put_back(without(low), steps[:low], cost, target, by_fours=align > 1)
    plan = _plan(model, channels, groups, gone, scores.ranker, scope, {name: value, "align": align})
    notes = [left_whole] if left_whole else []
    if cost(gone) < (1 - NEAR) * target:
        reached = cost(gone) / dense_cost
        reached = 1 - reached if name == "ratio" else reached
        notes.insert(0, f"{reached:.3f} for `{name}` {value}: every filter that is gone would, put back, overshoot it")
    return replace(plan, note="; ".join(notes))


def _checked_budget(given: dict[str, float | None]) -> tuple[str, float]:
    """Name and value of the one budget that is given."""
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise SlimrankError("give one budget: " + ", ".join(f"`{name}` ({what})" for name, what in BUDGETS.items()))
    ((name, value),) = chosen
    if not 0 < value < 1:
        raise SlimrankError(f"`{name}` is {value}, must lie strictly between 0 and 1; 0.5 halves")
    return name, value


def _prunable(channels: ChannelMap, scores: FilterScores, protected: set[str]) -> list[Group]:
    """The groups that lose filters: prunable, scored, not protected. Raises SlimrankError where there are none."""
    free = [group for group in channels.groups if group.prunable and group.name not in protected]
    scored = [group for group in free if group.name in scores.scores]
    if free and not scored:
        named = ", ".join(list(scores.scores)[:3])
        raise SlimrankError(f"the scores are of other layers ({named}) than this checkpoint can lose; rank this checkpoint")
    if not scored:
        why = "no prunable layer has scores and is not protected; `slimrank inspect` says why"
        raise OutOfReach(f"nothing to prune: {why}", 1.0)
    return scored


def _rules(scope: str, min_filters: int, protect: Sequence[str], left_whole: str) -> str:
    """What must stay, in words."""
    few = "one filter" if min_filters == 1 else f"{min_filters} filters (`min_filters`)"
    few = f"a tenth of the filters, as `scope` global keeps, and at least {few}" if scope == "global" else few
    whole = f" and all of {', '.join(protect)}" if protect else ""
    return f"with {few} left in each layer that can be cut{whole}{f' ({left_whole})' if left_whole else ''}"


def _out_of_reach(name: str, value: float, least_share: float, rules: str) -> OutOfReach:
    """The error for a budget below what cannot be cut, with the nearest one that can be asked for."""
    nearest = floor(1000 * (1 - least_share)) / 1000 if name == "ratio" else ceil(1000 * least_share) / 1000
    if nearest >= 1 or (name == "ratio" and nearest <= 0):
        return OutOfReach(f"`{name}` {value} is out of reach: {rules}, nothing can be cut at all", 1.0)
    limit = f"`ratio` of at most {nearest}" if name == "ratio" else f"`{name}` of at least {nearest}"
    return OutOfReach(f"`{name}` {value} is out of reach: {rules}, the least is a {limit}", nearest)


def _put_back(gone: Tensor, steps: list[Tensor], cost: Callable[[Tensor], float], target: float, *, by_fours: bool) -> Tensor:
    """Put back what still fits the target, best first: whole steps, then fours of channels, then single units."""
    fours = [part for step in steps for part in step.split(GRAIN)] if by_fours else []
    singles = [unit for step in steps for unit in step.split(1)]
    for candidates in (steps, fours, singles):
        for step in reversed(candidates):
            if cost(gone) >= (1 - NEAR) * target:
                break
            back = gone.clone()
            back[step] = False
            if cost(back) <= target:
                gone = back
    return gone


def guarded(channels: ChannelMap, protect: Sequence[str]) -> set[str]:
    """The groups of protected layers, by name. Raises SlimrankError for a layer that is not there or loses nothing anyway."""
    layers = [protect] if isinstance(protect, str) else protect
    groups = [(layer, channels.group(layer)) for layer in layers]
    for layer, group in groups:
        if not group.prunable:
            raise SlimrankError(
                f"`protect` {layer}: no filter of it is ever cut ({group.why}); leave it out, or name another layer"
            )
    return {group.name for _, group in groups}


def unscored(channels: ChannelMap, scores: FilterScores, protected: set[str]) -> str:
    """What stays whole for want of scores, in words; empty where all that may be cut has them."""
    names = [g.name for g in channels.groups if g.prunable and g.name not in protected and g.name not in scores.scores]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    return f"no scores for {shown}: left whole" if names else ""


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


def _plan(
    model: nn.Module, channels: ChannelMap, groups: list[Group], gone: Tensor, ranker: str, scope: str, budget: dict[str, float]
) -> PruningPlan:
    convs = [g.name for g in groups if isinstance(model.get_submodule(g.name), CONVS)]
    before = channels.macs(model, channels.removed({}))
    keep, widths = {}, {}
    for group in groups:
        kept = (~gone[group.offset : group.offset + group.units]).nonzero().flatten().tolist()
        keep[group.name] = kept
        widths[group.name] = [group.units, len(kept)]
    return PruningPlan(keep, before, channels.macs(model, gone), budget, scope, ranker, widths, convs)
