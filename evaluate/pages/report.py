"""Pages about runs of `compress`: of one (report.html) or of many side by side, made from their report.json."""

from dataclasses import dataclass

from markupsafe import Markup

from .front import Panel, Point, front
from .merged import Group, Merged, Row
from .plots import layer_bars, themed
from .render import percent, points, render, short, tone
from .run import Run, Setting, Speedup, Timed

SHOWN_CLASSES = 200  # rows of the table of class-specific subspaces
LABELLED = 16  # networks in a chart that are all labelled; of more, those on the front


@dataclass(frozen=True)
class Card:
    """One large figure with its label; `tone`: good, bad, or empty for neither."""

    figure: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Cell:
    """One model's time in the latency table, and how many times as fast as the baseline it is."""

    timed: Timed
    speedup: Speedup | None


@dataclass(frozen=True)
class Pivot:
    """Latency, a row a model (with threads and provider, where there are several), a column a batch size."""

    batches: list[int]
    rows: list[tuple[str, list[Cell | None]]]

    @property
    def intervals(self) -> bool:
        return any(cell and cell.speedup and cell.speedup.low for _, cells in self.rows for cell in cells)

    @property
    def heads(self) -> list[str]:
        return [head for batch in self.batches for head in (f"batch {batch}", "speedup")]


@dataclass(frozen=True)
class RunView:
    """A run as its part of the page shows it."""

    run: Run
    cards: list[Card]
    doubtful: bool
    latency: Pivot
    widths: list[tuple[str, int, int]]
    repair: tuple[str, dict[str, float | None]] | None
    ranking: list[Markup]
    subspaces: list[tuple[str, list[int]]]


@dataclass(frozen=True)
class GroupView:
    """Runs that can be compared; `rows` with their numbers, a chart of each cost; `others`: timed beside `group.setting`."""

    group: Group
    rows: list[tuple[int, Row]]
    charts: list[Markup]
    others: list[Setting]

    @property
    def other_heads(self) -> list[str]:
        """Heads of the columns of speedups, with what tells them from the group's setting."""
        usual = self.group.setting
        return [
            f"batch {batch}" + (f", {threads} threads" if usual and threads != usual[1] else "")
            + (f", {provider}" if usual and provider != usual[0] else "")
            for provider, threads, batch in self.others
        ]  # fmt: skip

    @property
    def paced(self) -> bool:
        """Whether several runs' times were set to one pace."""
        return self.group.setting is not None and len({id(row.run) for row in self.group.rows}) > 1


def report_page(merged: Merged) -> str:
    """Render the page about some runs; every figure comes from their reports."""
    runs, groups = merged.runs, merged.groups
    return render(
        "report.html.jinja",
        runs=[_run_view(run, alone=len(runs) == 1) for run in runs],
        groups=[_group_view(group, i) for i, group in enumerate(groups, 1) if len(runs) > 1 or len(group.rows) > 2],
        versions=sorted({run.report.slimrank for run in runs}),
    )


# -- one run ----------------------------------------------------------------------------------------------------------------


def _run_view(run: Run, alone: bool) -> RunView:
    head = None if run.specialize is None else run.specialize.result
    scores = run.rank.scores.items() if alone else ()
    rankings = [layer_bars(layer, values, run.prune.keep.get(layer, [])) for layer, values in scores]
    return RunView(
        run=run,
        cards=_cards(run),
        doubtful=_may_be_memorised(run),
        latency=_pivot(run),
        widths=[(layer, *pair) for layer, pair in run.prune.widths.items()],
        repair=_repair(run),
        ranking=[Markup(themed(svg)) for svg in rankings],
        subspaces=_subspaces(run.report.classes, head.indices) if head is not None else [],
    )


def _cards(run: Run) -> list[Card]:
    before, after = run.report.baseline, run.report.compressed
    cards = []
    for provider, threads, batch in run.settings:
        at = provider, threads, batch
        speedup = run.speedup("compressed", at).speedup
        more = (f", {threads} threads" if threads > 1 else "") + (f", {provider}" if provider != "cpu" else "")
        cards.append(Card(f"{speedup:.2f}x", f"as fast, batch {batch}{more}", "good" if speedup > 1.02 else "bad"))
    cards.append(Card(f"{after.macs / before.macs:.0%}", "of the MACs"))
    cards.append(Card(f"{after.bytes / before.bytes:.0%}", "of the ONNX file"))
    if before.top1 is not None and after.top1 is not None:
        lost = after.top1 - before.top1
        cards.append(Card(points(lost), "points of top-1 (test)", tone(lost)))
    if after.agreement is not None:
        cards.append(Card(percent(after.agreement), "same decision as before (test)"))
    return cards


def _may_be_memorised(run: Run) -> bool:
    """Whether validation images came from the training split and nobody knows if the checkpoint saw them there."""
    validation = str(run.report.options.get("validation", ""))
    return run.report.validation_seen_in_training is None and validation.startswith("train")


def _pivot(run: Run) -> Pivot:
    batches = sorted({batch for _, _, batch in run.settings})
    paths = list(dict.fromkeys((provider, threads) for provider, threads, _ in run.settings))
    rows = []
    for provider, threads in paths:
        path = f", {threads} threads" if len({t for _, t in paths}) > 1 else ""
        path += f", {provider}" if len({p for p, _ in paths}) > 1 else ""
        for model in dict.fromkeys(row.model for row in run.bench.results):
            cells: list[Cell | None] = []
            for batch in batches:
                at = provider, threads, batch
                timed = run.times.get((model, at))
                told = at in run.settings and model != "baseline" and timed is not None
                cells.append(None if timed is None else Cell(timed, run.speedup(model, at) if told else None))
            rows.append((f"{model}{path}", cells))
    return Pivot(batches, rows)


def _repair(run: Run) -> tuple[str, dict[str, float | None]] | None:
    """Of what the shares are, and what the cut network gets right on test images after each step of its repair."""
    repair = run.prune.repair
    if repair is None:
        return None
    by_top1 = repair.as_cut.top1 is not None
    steps = {"as cut": repair.as_cut, "BatchNorm recalibrated": repair.recalibrated, "reconstructed": repair.reconstructed}
    shares = {label: one.top1 if by_top1 else one.agreement for label, one in steps.items() if one is not None}
    return "top-1, test" if by_top1 else "agreement with before, test", shares


def _subspaces(classes: list[str] | None, indices: list[list[int]]) -> list[tuple[str, list[int]]]:
    """The first classes, named or numbered, and the features that each one keeps."""
    names = classes or [str(number) for number in range(len(indices))]
    return list(zip(names, indices, strict=False))[:SHOWN_CLASSES]


# -- many -------------------------------------------------------------------------------------------------------------------


def told(setting: Setting) -> str:
    provider, threads, batch = setting
    return f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}, {provider}"


def _group_view(group: Group, number: int) -> GroupView:
    rows = list(enumerate(group.rows, 1))
    charts: list[Markup] = []
    if group.measure is not None:
        units = {
            "latency": "" if group.setting is None else f"milliseconds, {told(group.setting)}",
            "macs": "MACs, millions", "bytes": "ONNX file, MB",
        }  # fmt: skip
        charts = [Markup(themed(_chart(rows, number, group.measure, cost, unit))) for cost, unit in units.items() if unit]
    common = set.intersection(*(set(row.run.settings) for row in group.rows)) - {group.setting}
    return GroupView(group, rows, charts, sorted(common) if group.setting is not None else [])


def _chart(rows: list[tuple[int, Row]], group: int, measure: str, cost: str, unit: str) -> str:
    scale = 1 if cost == "latency" else 1e-6
    shown = []
    for number, row in rows:
        good, dear = getattr(row, measure), getattr(row, cost)
        if dear is not None:
            on_front = cost in row.front
            label = str(number) if on_front or len(rows) <= LABELLED else ""
            what = f"{dear:.3g} ms" if cost == "latency" else short(dear, "B" if cost == "bytes" else "MACs")
            tip = f"{number}. {row.label}: {percent(good, 2)}, {what}"
            shown.append(Point(scale * dear, good, label, row.kind, on_front, tip, f"{group}-{number}"))
    return front([Panel(unit, shown)], "top-1, test" if measure == "top1" else "agreement with the dense network")
