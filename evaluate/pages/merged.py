"""Many runs of `compress` side by side: their networks and rivals as rows, and which of these nothing beats."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from .names import visible
from .run import FLOAT, Run, Setting, read_run

COSTS = ("latency", "macs", "bytes")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network. `kind`: slimrank's, the same before int8 (float), the dense one, or a rival's; `run`: the run that it is of.

    `times`: milliseconds by setting, as measured; `speedups`: over the dense network of the same run; `latency`: milliseconds
    at the group's `setting`, at the pace that all runs of the group are set to (`Group`).
    """

    run: Run
    kind: str
    name: str
    model: str
    top1: float | None
    agreement: float | None
    macs: int
    bytes: int | None
    latency: float | None = None
    front: list[str] = field(default_factory=list)  # of COSTS: those in which no row is as good and cheaper

    @property
    def speedups(self) -> dict[Setting, float]:
        return {at: self.run.speedup(self.model, at).speedup for at in self.run.settings}

    @property
    def label(self) -> str:
        """The network in a line."""
        where = self.run.report.model if self.kind == "dense" or not self.run.name else self.run.name
        return visible(f"{self.name.partition(',')[0]}, {where}")

    def to_dict(self) -> dict[str, Any]:
        speedups = self.speedups
        return {
            "run": self.run.name, "kind": self.kind, "name": self.name, "network": self.run.report.model, "top1": self.top1,
            "agreement": self.agreement, "macs": self.macs, "bytes": self.bytes, "latency_ms": self.latency,
            "latency": [
                {"provider": at[0], "threads": at[1], "batch": at[2], "speedup": speedups[at],
                 "median_ms": self.run.times[self.model, at].median_ms}
                for at in self.run.settings
            ],
            "front": self.front,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that were tested on the same images, so that one front can be drawn through them.

    `setting`: where the latency of the rows was measured, None where no setting is common to all, or the runs are of several
    machines. Times of different hours are set to one pace: a row's latency is its share of the time of the dense network in
    its own run, times that network's median over the runs.
    """

    images: str
    measure: str | None  # top1, agreement, or None where there are no images
    setting: Setting | None
    machines: int
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """All but the rows."""
        at = None if self.setting is None else dict(zip(("provider", "threads", "batch"), self.setting, strict=True))
        return {"images": self.images, "measure": self.measure, "setting": at, "machines": self.machines}


@dataclass(frozen=True)
class Merged:
    """Some runs and the groups of them that can be compared."""

    runs: list[Run]

    @cached_property
    def groups(self) -> list[Group]:
        return grouped(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """`groups`, and `rows` that name theirs by number, from 1."""
        rows = [{"group": i, **row.to_dict()} for i, group in enumerate(self.groups, 1) for row in group.rows]
        return {"groups": [group.to_dict() for group in self.groups], "rows": rows}

    def __str__(self) -> str:
        lines = []
        for group in self.groups:
            lines.append(f"on {group.images}; * marks what no other network beats")
            wide = max(len(row.label) for row in group.rows)
            time = "" if group.setting is None else f"ms, batch {group.setting[2]}"
            lines.append(f"  {'':{wide}} {group.measure or '':>9} {time:>13} {'MACs':>16} {'bytes':>14}")
            for row in group.rows:
                good = "" if group.measure is None else f"{getattr(row, group.measure):.4f}"
                cells = [
                    "" if row.latency is None else f"{row.latency:.3f}",
                    f"{row.macs:,}",
                    f"{row.bytes:,}" if row.bytes else "",
                ]
                marked = [f"{cell}{'*' if cost in row.front else ' '}" for cost, cell in zip(COSTS, cells, strict=True)]
                lines.append(f"  {row.label:{wide}} {good:>9} {marked[0]:>13} {marked[1]:>16} {marked[2]:>14}")
        if len(self.groups) > 1:
            lines.append("tested on different images: accuracies are not to be compared across these tables")
        return "\n".join(lines)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in some folders, in their order. Raises SlimrankError for a folder that is named twice."""
    for i, folder in enumerate(folders):
        for other in folders[:i]:
            if folder.exists() and other.exists() and folder.samefile(other):
                raise SlimrankError(f"{folder} is given twice; name each run once")
    return [read_run(folder) for folder in folders]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs that can be compared, together; each group's rows with what is on its fronts."""
    alike: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault(run.tested_on, []).append(run)
    return [_group(some) for some in alike.values()]


def _group(runs: list[Run]) -> Group:
    common = set.intersection(*(set(run.settings) for run in runs))
    machines = len({(run.report.machine.processor, run.report.machine.cores) for run in runs})
    setting = min(common) if common and machines == 1 else None
    rows = _rows(runs, setting)
    measure = next((key for key in ("top1", "agreement") if all(getattr(row, key) is not None for row in rows)), None)
    if measure is not None:
        for cost in COSTS:
            for row in front(rows, measure, cost):
                row.front.append(cost)
    return Group(images=runs[0].images, measure=measure, setting=setting, machines=machines, rows=rows)


def _rows(runs: list[Run], setting: Setting | None) -> list[Row]:
    dense: dict[str, list[Run]] = {}
    for run in runs:
        dense.setdefault(_given(run), []).append(run)

    def paced(run: Run, model: str) -> float | None:
        if setting is None:
            return None
        usual = statistics.median(other.times["baseline", setting].median_ms for other in dense[_given(run)])
        return usual / run.speedup(model, setting).speedup

    def row(run: Run, kind: str, name: str, model: str, found: Any) -> Row:
        size = run.report.baseline.bytes if model == "baseline" else found.bytes
        macs = run.report.compressed.macs if kind == "float" else found.macs
        return Row(
            run=run, kind=kind, name=name, model=model, top1=found.top1, agreement=found.agreement, macs=macs,
            bytes=size, latency=paced(run, model),
        )  # fmt: skip

    rows = []
    for run in runs:
        if dense[_given(run)][0] is run:
            rows.append(row(run, "dense", "dense, as given", "baseline", run.report.baseline))
        rows.append(row(run, "slimrank", "slimrank", "compressed", run.report.compressed))
        if run.int8 is not None and run.int8.taken:
            rows.append(row(run, "float", "the same before int8", FLOAT, run.int8.float))
        rows += [row(run, "rival", rival.name, rival.model, rival) for rival in run.rivals]
    return rows


def _given(run: Run) -> str:
    """What tells the checkpoints that were compressed apart; runs of old that do not say count by themselves."""
    return str(run.report.options.get("checkpoint") or run.name)


def front(rows: Sequence[Row], measure: str, cost: str) -> list[Row]:
    """The rows that no other one beats: as good and cheaper, or as cheap and better."""
    known = [(getattr(row, measure), getattr(row, cost), row) for row in rows if getattr(row, cost) is not None]
    return [
        row for good, dear, row in known
        if not any(g >= good and d <= dear and (g, d) != (good, dear) for g, d, _ in known)
    ]  # fmt: skip
