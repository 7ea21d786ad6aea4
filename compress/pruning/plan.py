"""PruningPlan: which units stay. What select.py makes and surgery.py carries out."""

import json
from dataclasses import asdict, dataclass, field

from ...errors import SlimrankError
from ..channels.groups import ChannelMap, stays


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, per group (local numbers, rising), and what that costs. MACs are of one image, exact."""

    keep: dict[str, list[int]]
    macs_before: int
    macs_after: int
    budget: dict[str, int | float]
    scope: str
    ranker: str
    widths: dict[str, list[int]] = field(default_factory=dict)  # group -> [units before, units after]
    convs: list[str] = field(default_factory=list)  # groups of conv filters, the ones that alignment is about
    note: str = ""  # why the budget was not met more nearly, what was left alone

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
        gone = channels.removed(self.keep)
        for layer in channels.positions:
            if not (stays(channels.writes[layer], gone).any() and stays(channels.reads[layer], gone).any()):
                raise SlimrankError(f"the plan leaves {layer} without channels; keep at least one of those that it has alone")

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
        note = [f"  {len(odd)} of these widths are no multiples of {align}"] if odd else []
        note += [f"  {self.note}"] if self.note else []
        return "\n".join([head, *rows, *note])
