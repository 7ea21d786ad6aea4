"""What a network is made of: layers, groups, what can be pruned, what not and why, and where its time goes."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...evaluate.macs import Macs, count
from ..channels import channels_of
from ..network.checkpoint import Checkpoint
from ..pruning.costs import measure_costs, unit_step
from ..pruning.select import runtime_block
from .options import InspectOptions


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A group of filters: `filters` of the layer that names it, `units` that can be cut one by one, `cuttable` of them.

    Where layers are timed: `block`, the channels that the runtime pays for at once, `step`, the units that make it up, and
    `block_saves`, the share of the time that a block less saves.
    """

    layer: str
    filters: int
    units: int
    cuttable: int
    prunable: bool
    why: str
    layers: list[str]
    block: int | None = None
    step: int | None = None
    block_saves: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Inspection:
    """`layer_ms[batch][layer]`: milliseconds in ONNX Runtime, where they were asked for, on `threads` threads."""

    model: str
    input: tuple[int, ...]
    counted: Macs
    groups: list[GroupRow]
    classifier: str
    layer_ms: dict[int, dict[str, float]] = field(default_factory=dict)
    threads: int = 1
    fit_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        counted = asdict(self.counted)
        found = {
            "model": self.model, "input": list(self.input), "macs": counted["macs"], "params": counted["params"],
            "classifier": self.classifier, "groups": [group.to_dict() for group in self.groups], "layers": counted["layers"],
            "uncounted": counted["uncounted"],
        }  # fmt: skip
        if self.layer_ms:
            found |= {"layer_ms": self.layer_ms, "threads": self.threads, "fit_error": self.fit_error}
        return found

    def __str__(self) -> str:
        rows = [f"{self.model}, input {'x'.join(map(str, self.input))}, classifier {self.classifier}", str(self.counted), ""]
        batch = next(iter(self.layer_ms), None)
        timed = "" if batch is None else f"{f'{self.block} less':>11}  "
        rows.append(f"  {'group':32} filters  prunable{timed}  layers")
        for group in self.groups:
            verdict = f"{group.cuttable:8}" if group.prunable else "      no"
            tied = f"{len(group.layers)} tied" if len(group.layers) > 1 else "alone"
            why = f"  ({group.why})" if group.why else ""
            saves = ""
            if batch is not None:
                saves = f"{group.block_saves:11.2%}" if group.prunable else " " * 11
                saves += " 1" if group.prunable and group.step == 1 else "  "
            rows.append(f"  {group.layer:32} {group.filters:7}  {verdict}{saves}  {tied}{why}")
        if batch is not None:
            rows += ["", *self._times()]
        return "\n".join(rows)

    def _times(self) -> list[str]:
        batches = list(self.layer_ms)
        rows = [f"  {'layer':32} " + " ".join(f"{f'ms, batch {b}':>14}" for b in batches) + "  share of time  of MACs"]
        totals = {b: sum(ms.values()) for b, ms in self.layer_ms.items()}
        for name in self.layer_ms[batches[0]]:
            taken = " ".join(f"{self.layer_ms[b][name]:14.3f}" for b in batches)
            share = sum(self.layer_ms[b][name] / totals[b] for b in batches) / len(batches)
            macs = self.counted.layers[name].macs / self.counted.macs
            rows.append(f"  {name:32} {taken}  {share:13.1%}  {macs:7.1%}")
        rows.append(f"  {'total':32} " + " ".join(f"{totals[b]:14.3f}" for b in batches))
        b = self.block
        rows += [
            f"  ONNX Runtime on {self.threads} thread(s), CPU provider; a layer's time holds what follows it.",
            f"  {b} less: share of the time that {b} channels less save. ONNX Runtime pays for whole blocks: one filter less",
            f"  saves nothing (except at 1, where {b} of them save this). Fitted, off by {self.fit_error:.1%} at most.",
        ]
        return rows

    @property
    def block(self) -> int:
        return self.groups[0].block or 1


def inspect(checkpoint: Checkpoint, options: InspectOptions | None = None) -> Inspection:
    """Find layers with MACs and parameters, and filter groups; with `time`, milliseconds of each layer in ONNX Runtime too.

    Raises SlimrankError where the network does not run, and for settings that cannot be timed.
    """
    options = (options or InspectOptions()).check()
    channels, shape = channels_of(checkpoint), checkpoint.preprocessing.shape
    rows = [
        GroupRow(
            layer=group.name, filters=group.filters, units=group.units,
            cuttable=group.units - len(group.fixed) if group.prunable else 0, prunable=group.prunable, why=group.why,
            layers=list(group.layers),
        )
        for group in channels.groups
    ]  # fmt: skip
    inspection = Inspection(checkpoint.name, shape, count(checkpoint.model, shape), rows, channels.classifier)
    if not options.time:
        return inspection
    block, threads = runtime_block(), options.timing.threads[0]
    costs = measure_costs(
        checkpoint.model, channels, checkpoint.example(2), block=block, batches=options.timing.batch, threads=threads
    )  # fmt: skip
    timed = []
    for row, group in zip(rows, channels.groups, strict=True):
        step, saves = unit_step(checkpoint.model, group, block), None
        if group.prunable:
            n = step if step > 1 else block
            saves = costs.saving(checkpoint.model, channels, group) * min(n, group.units - 1)
        timed.append(replace(row, block=block, step=step, block_saves=saves))
    return replace(inspection, groups=timed, layer_ms=costs.measured, threads=threads, fit_error=costs.error)
