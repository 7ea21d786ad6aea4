"""What a network is made of: layers, groups, what can be pruned, what not and why."""

from dataclasses import asdict, dataclass
from typing import Any

from ..evaluate.macs import Macs, count
from .checkpoint import Checkpoint
from .tracing import channel_map


@dataclass(frozen=True)
class Inspection:
    model: str
    input: tuple[int, ...]
    counted: Macs
    groups: list[dict[str, Any]]
    classifier: str

    def to_dict(self) -> dict[str, Any]:
        counted = asdict(self.counted)
        return {
            "model": self.model, "input": list(self.input), "macs": counted["macs"], "params": counted["params"],
            "classifier": self.classifier, "groups": self.groups, "layers": counted["layers"],
            "uncounted": counted["uncounted"],
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{self.model}, input {'x'.join(map(str, self.input))}, classifier {self.classifier}", str(self.counted), ""]
        rows.append(f"  {'group':32} filters  prunable  layers")
        for group in self.groups:
            verdict = f"{group['cuttable']:8}" if group["prunable"] else "      no"
            tied = f"{len(group['layers'])} tied" if len(group["layers"]) > 1 else "alone"
            why = f"  ({group['why']})" if group["why"] else ""
            rows.append(f"  {group['layer']:32} {group['filters']:7}  {verdict}  {tied}{why}")
        return "\n".join(rows)


def inspect(checkpoint: Checkpoint) -> Inspection:
    """Layers with MACs and parameters, and filter groups: `filters` of the layer that names the group, `cuttable` units."""
    channels = channel_map(checkpoint.model, checkpoint.example())
    groups = [
        {
            "layer": g.name,
            "filters": g.filters,
            "units": g.units,
            "cuttable": g.units - len(g.fixed) if g.prunable else 0,
            "prunable": g.prunable,
            "why": g.why,
            "layers": list(g.layers),
        }
        for g in channels.groups
    ]
    shape = checkpoint.preprocessing.shape
    return Inspection(checkpoint.name, shape, count(checkpoint.model, shape), groups, channels.classifier)
