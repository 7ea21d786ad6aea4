"""Scores and a budget in, a pruning plan out: pure tensors, no surgery.

One order of removal serves every budget: units are sorted by a key and dropped from the low end until the budget is met.
Scope `layer` takes the share of the group that is gone with a unit as the key (every group loses about the same share:
uniform pruning, ordered by the ranker); scope `global` compares scores across layers and never takes a group below a tenth
of its units. Scores in one unit (CAR and Shapley: accuracy) are taken as they are, per MAC that a unit costs where the
budget is MACs: the least accuracy for the most MACs goes first. Others are divided by their group's mean, so that layers
of different scale can be compared at all.
"""

import json
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from ..errors import SlimrankError, near
from .layers import CONVS, ChannelMap, Group
from .scores import FilterScores

SCOPES = ("layer", "global")
NEAR = 0.02  # a budget counts as met this close below it


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, per group (local numbers, rising), and what that costs. MACs are of one image, exact."""

    keep: dict[str, list[int]]
    macs_before: int
    macs_after: int
    budget: dict[str, float]
    scope: str
    ranker: str
    widths: dict[str, list[int]] = field(default_factory=dict)  # group -> [units before, units after]
    convs: list[str] = field(default_factory=list)  # groups of conv filters, the ones that alignment is about

    def check(self, channels: ChannelMap) -> None:
        """Raise SlimrankError unless the plan fits this network."""
        for name, keep in self.keep.items():
            group = channels.group(name)
            if group.name != name or not keep or sorted(set(keep)) != list(keep):
                raise SlimrankError(f"plan for {name}: kept units must be rising, unique and at least one")
            if keep[0] < 0 or keep[-1] >= group.units:
                raise SlimrankError(f"plan for {name} keeps unit {keep[-1]} of {group.units}; make it for this checkpoint")
            lost = set(group.fixed) - set(keep)
            if lost:
                raise SlimrankError(f"plan for {name} drops units that must stay, as {group.why}")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        return cls(**json.loads(text))

    def __str__(self) -> str:
        rows = [f"  {name:32} {a:5} -> {b:5}" for name, (a, b) in self.widths.items() if a != b]
        share = self.macs_after / max(self.macs_before, 1)
        head = f"{self.ranker}, {self.scope} scope: MACs {self.macs_before:,} -> {self.macs_after:,} ({share:.1%} kept)"
        align = int(self.budget.get("align", 1))
        odd = [name for name, (a, b) in self.widths.items() if name in self.convs and a != b and b % align]
        note = [f"  {len(odd)} of these are no multiples of {align}: blocks alone miss the budget"] if odd else []
        return "\n".join([head, *rows, *note])


def select(
    model: nn.Module,
    channels: ChannelMap,
    scores: FilterScores,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    scope: str = "layer",
    align: int = 1,
) -> PruningPlan:
    """Choose the units to keep. Exactly one budget: `ratio`, share of units removed; `macs`, share of MACs kept.

    The budget is met from the small side, as near as single units allow. `align`: conv layers lose channels in blocks, so
    that what stays is a multiple of it (ONNX Runtime pays for whole blocks); where blocks alone miss the budget by more
    than 2 %, single units make up for it. Raises SlimrankError for budgets outside (0, 1), scores of another network, and
    a budget below what the layers that cannot be pruned cost.
    """
    if (ratio is None) == (macs is None):
        raise SlimrankError("give one budget: --ratio R (share of filters removed) or --macs F (share kept)")
    name, value = ("ratio", ratio) if macs is None else ("macs", macs)
    if value is None or not 0 < value < 1:
        raise SlimrankError(f"--{name} is {value}, must lie strictly between 0 and 1; 0.5 halves")
    if scope not in SCOPES:
        raise SlimrankError(f"no scope {scope!r}; {near(scope, SCOPES)}")
    if align < 1:
        raise SlimrankError(f"--align is {align}, must be at least 1 channel")
    scored = [group for group in channels.groups if group.prunable and group.name in scores.scores]
    if not scored and any(group.prunable for group in channels.groups):
        given = ", ".join(list(scores.scores)[:3])
        raise SlimrankError(f"the scores are of other layers ({given}) than this checkpoint can lose; rank this checkpoint")
    if not scored:
        raise SlimrankError("nothing to prune: no prunable layer has scores; `slimrank inspect` says why")
    nothing = channels.removed({})
    units = sum(g.units for g in scored)

    def cost(gone: Tensor) -> int:
        return units - int(gone.sum()) if macs is None else channels.macs(model, gone)

    def one(group: Group) -> int:
        """What a unit of a group costs."""
        gone = nothing.clone()
        gone[group.offset] = True
        return max(1, cost(nothing) - cost(gone))

    steps = _order(model, scored, scores, scope, align, {group.name: one(group) for group in scored})

    def without(n: int) -> Tensor:
        gone = nothing.clone()
        gone[torch.cat([torch.empty(0, dtype=torch.long), *steps[:n]])] = True
        return gone

    target = (value if macs is not None else 1 - value) * cost(nothing)
    low, high = 0, len(steps)
    least = cost(without(high))
    if least > target:
        share = least / cost(nothing)
        limit = f"--macs of at least {share:.3f}" if macs is not None else f"--ratio of at most {1 - share:.3f}"
        raise SlimrankError(
            f"--{name} {value} is out of reach: with one filter left in each layer that can be cut, the least is a {limit}"
        )
    while low < high:  # fewest removals that meet the target
        middle = (low + high) // 2
        low, high = (low, middle) if cost(without(middle)) <= target else (middle + 1, high)
    gone = without(low)
    singles = [unit for step in steps[:low] for unit in step.split(1)]
    for candidates in (steps[:low], singles):  # what still fits comes back, best first
        for step in reversed(candidates):
            if cost(gone) >= (1 - NEAR) * target:
                break
            back = gone.clone()
            back[step] = False
            if cost(back) <= target:
                gone = back
    return _plan(model, channels, scored, gone, scores.ranker, scope, {name: value, "align": align})


def uniform(model: nn.Module, channels: ChannelMap, share: float) -> PruningPlan:
    """The plain rival: every group cut to the same share of its width, MACs nearest below `share`. Which units is arbitrary."""
    return select(model, channels, FilterScores.flat("uniform", channels), macs=share, scope="layer")


def runtime_block() -> int:
    """Channels that ONNX Runtime's CPU convolutions pay for at once: 16 with AVX-512, else 8."""
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _order(
    model: nn.Module, groups: list[Group], scores: FilterScores, scope: str, align: int, costs: dict[str, int]
) -> list[Tensor]:
    """Steps of removal (global unit numbers), first to go first. `costs`: of one unit of each group, in the budget's currency.

    A step is a block that leaves an aligned width, or a single unit where the width is not aligned anyway. Breaking an
    aligned width saves MACs but costs time, so these steps come last of all. Between equals, filters of a layer on its own
    go before those of a residual stream, which many layers read.
    """
    steps: list[tuple[tuple[bool, float, int], Tensor]] = []
    for group in groups:
        score = torch.tensor(scores.scores[group.name], dtype=torch.float64)
        if len(score) != group.units:
            raise SlimrankError(
                f"scores for {group.name} count {len(score)} filters, the network has {group.units}; rank this checkpoint"
            )
        score[list(group.fixed)] = torch.inf
        order = [unit for unit in scores.order(group.name) if unit not in group.fixed]
        ranked = torch.tensor([*order, *group.fixed])
        floor = max(1, len(group.fixed), round(0.1 * group.units) if scope == "global" else 1)
        removable = group.units - floor
        if scope == "layer":  # a step's key is the share of the group that is gone after it
            key = (torch.arange(group.units, dtype=torch.float64) + 1) / group.units
        else:
            scale = score[torch.isfinite(score)].abs().mean().clamp_min(1e-30)
            key = score[ranked] / scale
            if scores.comparable:  # of what gains by going, too, the costly goes first
                key = torch.where(score[ranked] < 0, score[ranked] * costs[group.name], score[ranked] / costs[group.name])
        conv = isinstance(model.get_submodule(group.name), CONVS)
        step = max(1, align // max(1, group.filters // group.units)) if conv else 1
        start, broken = 0, False
        while start < removable:
            end = start + ((group.units - start) % step or step)
            aligned = end <= removable
            end = end if aligned else start + 1
            breaks = not aligned and (group.units - start) % step == 0
            steps.append(((breaks or broken, float(key[start:end].max()), len(group.layers)), ranked[start:end] + group.offset))
            broken = broken or breaks
            start = end
    return [units for _, units in sorted(steps, key=lambda step: step[0])]


def _plan(model, channels, groups, gone, ranker, scope, budget) -> PruningPlan:
    convs = [g.name for g in groups if isinstance(model.get_submodule(g.name), CONVS)]
    before = channels.macs(model, channels.removed({}))
    keep, widths = {}, {}
    for group in groups:
        kept = (~gone[group.offset : group.offset + group.units]).nonzero().flatten().tolist()
        keep[group.name] = kept
        widths[group.name] = [group.units, len(kept)]
    return PruningPlan(keep, before, channels.macs(model, gone), budget, scope, ranker, widths, convs)
