"""Scores and a budget in, a pruning plan out: pure tensors, no surgery.

One order of removal serves every budget: units are sorted by a key and dropped from the low end until the budget is met.
Scope `layer` takes a unit's rank within its group as the key (every group loses about the same share: uniform pruning,
ordered by the ranker); scope `global` takes the score divided by its group's mean, so that layers of different scale can
be compared (algorithms.md, section 2), and never takes a group below a tenth of its units.
"""

import json
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from ..errors import SlimrankError, near
from .layers import ChannelMap, Group
from .scores import FilterScores

SCOPES = ("layer", "global")


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
        return "\n".join([head, *rows])


def select(
    model: nn.Module,
    channels: ChannelMap,
    scores: FilterScores,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    scope: str = "layer",
) -> PruningPlan:
    """Choose the units to keep. Exactly one budget: `ratio`, share of units removed; `macs`, share of MACs kept.

    `macs` is met from below, as near as single units allow. Raises SlimrankError for budgets outside (0, 1), scores of
    another network, and a budget below what the layers that cannot be pruned cost.
    """
    if (ratio is None) == (macs is None):
        raise SlimrankError("give one budget: --ratio R (share of filters removed) or --macs F (share kept)")
    name, value = ("--ratio", ratio) if macs is None else ("--macs", macs)
    if value is None or not 0 < value < 1:
        raise SlimrankError(f"{name} is {value}, must lie strictly between 0 and 1; 0.5 halves")
    if scope not in SCOPES:
        raise SlimrankError(f"no scope {scope!r}; {near(scope, SCOPES)}")
    scored = [group for group in channels.groups if group.prunable and group.name in scores.scores]
    if not scored:
        raise SlimrankError("nothing to prune: no prunable layer has scores; `slimrank inspect` says why")
    order = _order(scored, scores, scope)
    everything = channels.removed({})

    def cost(removed: int) -> int:
        gone = everything.clone()
        gone[order[:removed]] = True
        return channels.macs(model, gone)

    before = cost(0)
    gone = everything.clone()
    if ratio is not None:
        total = sum(g.units for g in scored)
        gone[order[: min(round(ratio * total), len(order))]] = True
    else:
        assert macs is not None
        target = macs * before
        low, high = 0, len(order)
        if cost(high) > target:
            raise SlimrankError(
                f"--macs {macs} is out of reach: the layers that must stay cost {cost(high) / before:.3f} of the MACs; "
                "ask for more"
            )
        while low < high:  # fewest removals that meet the target
            middle = (low + high) // 2
            low, high = (low, middle) if cost(middle) <= target else (middle + 1, high)
        gone[order[:low]] = True
        for unit in reversed(order[:low].tolist()):  # what still fits comes back, best first
            gone[unit] = False
            if channels.macs(model, gone) > target:
                gone[unit] = True
            if channels.macs(model, gone) > 0.999 * target:
                break
    return _plan(model, channels, scored, gone, before, scores.ranker, scope, {name[2:]: value})


def uniform_like(model: nn.Module, channels: ChannelMap, share: float) -> PruningPlan:
    """The plain rival: every group cut to the same share of its width, MACs nearest to `share`. Which units is arbitrary."""
    equal = FilterScores.flat("uniform", channels)
    return select(model, channels, equal, macs=share, scope="layer")


def _order(groups: list[Group], scores: FilterScores, scope: str) -> Tensor:
    """Global unit numbers, first to go first; the units that must stay and each group's best ones are left out."""
    keys, units = [], []
    for group in groups:
        score = torch.tensor(scores.scores[group.name], dtype=torch.float64)
        if len(score) != group.units:
            raise SlimrankError(
                f"scores for {group.name} count {len(score)} filters, the network has {group.units}; rank this checkpoint"
            )
        score[list(group.fixed)] = torch.inf
        ranked = torch.argsort(score, stable=True)
        floor = max(1, len(group.fixed), round(0.1 * group.units) if scope == "global" else 1)
        ranked = ranked[: group.units - floor]
        if scope == "layer":
            key = (torch.arange(len(ranked), dtype=torch.float64) + 0.5) / group.units
        else:
            finite = score[torch.isfinite(score)]
            key = score[ranked] / finite.abs().mean().clamp_min(1e-30)
        keys.append(key)
        units.append(ranked + group.offset)
    return torch.cat(units)[torch.argsort(torch.cat(keys), stable=True)]


def _plan(model, channels, groups, gone, before, ranker, scope, budget) -> PruningPlan:
    keep, widths = {}, {}
    for group in groups:
        kept = (~gone[group.offset : group.offset + group.units]).nonzero().flatten().tolist()
        keep[group.name] = kept
        widths[group.name] = [group.units, len(kept)]
    return PruningPlan(keep, before, channels.macs(model, gone), budget, scope, ranker, widths)
