"""report.html: one self-contained page about one run of `compress`, made from its report.json."""

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .plots import bars, widths
from .render import render

SHOWN_CLASSES = 200  # rows of the table of class-specific subspaces


@dataclass(frozen=True)
class Card:
    """One large figure with its label; `tone`: good, bad, or empty for neither."""

    figure: str
    label: str
    tone: str = ""


@dataclass(frozen=True)
class Rivals:
    """The simple ways beside the compressed model: report rows and their median milliseconds at the smallest batch."""

    batch: int
    own_ms: float
    rows: list[tuple[dict[str, Any], float]]


@dataclass(frozen=True)
class Repair:
    """What a cut network gets right on test images after each step of its repair, `shares[step]`, before any training.

    `measure`: of what they are shares; `images`: training images that it was repaired on; `note`: what did not go as usual.
    """

    measure: str
    shares: dict[str, float]
    images: int
    note: str


def report_page(report: dict[str, Any]) -> str:
    """Render report.html; every figure comes from `report`, the object in report.json."""
    stages = {stage["name"]: stage for stage in report["stages"]}
    prune, head = stages["prune"], stages.get("specialize", {}).get("result")
    filters_before = {layer: before for layer, (before, _) in prune["widths"].items()}
    filters_after = {layer: after for layer, (_, after) in prune["widths"].items()}
    return render(
        "report.html.jinja",
        report=report,
        stages=stages,
        cards=_cards(report["baseline"], report["compressed"]),
        doubtful=_may_be_memorised(report),
        latency=_speedups(stages["bench"]["results"]),
        rivals=_rivals(stages.get("rivals", {}).get("rows"), stages["bench"]["results"]),
        widths=Markup(widths(filters_before, filters_after)),
        repair=_repair(prune.get("repair")),
        ranking=Markup(bars(stages["rank"]["scores"], prune["keep"])),
        head=head,
        subspaces=_subspaces(report["classes"], head["indices"]) if head else [],
    )


def _cards(before: dict[str, Any], after: dict[str, Any]) -> list[Card]:
    cards = []
    for new, old in zip(after["latency"], before["latency"], strict=True):
        speedup = old["median_ms"] / new["median_ms"]
        threads = f", {new['threads']} threads" if new["threads"] > 1 else ""
        cards.append(Card(f"{speedup:.2f}x", f"as fast, batch {new['batch']}{threads}", "good" if speedup > 1.02 else "bad"))
    cards.append(Card(f"{after['macs'] / before['macs']:.0%}", "of the MACs"))
    cards.append(Card(f"{after['bytes'] / before['bytes']:.0%}", "of the ONNX file"))
    if after["top1"] is not None:
        cards.append(Card(f"{100 * (after['top1'] - before['top1']):+.2f}", "points of top-1 (test)"))
    if after["agreement"] is not None:
        cards.append(Card(f"{after['agreement']:.1%}", "same decision as before (test)"))
    return cards


def _may_be_memorised(report: dict[str, Any]) -> bool:
    """Whether validation images came from the training split and nobody knows if the checkpoint saw them there."""
    return report["validation_seen_in_training"] is None and str(report["options"].get("validation", "")).startswith("train")


def _speedups(results: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Each timing with the baseline's median of the same provider, batch and threads over its own."""
    baseline = {(r["provider"], r["batch"], r["threads"]): r["median_ms"] for r in results if r["model"] == "baseline"}
    return [(r, baseline[r["provider"], r["batch"], r["threads"]] / r["median_ms"]) for r in results]


def _rivals(rows: list[dict[str, Any]] | None, results: list[dict[str, Any]]) -> Rivals | None:
    if not rows:
        return None
    median_ms = {(r["model"], r["batch"]): r["median_ms"] for r in results}
    batch = min(r["batch"] for r in results)
    return Rivals(batch, median_ms["compressed", batch], [(row, median_ms[row["model"], batch]) for row in rows])


def _repair(repair: dict[str, Any] | None) -> Repair | None:
    """The cut network's repair, where it was repaired; by agreement where the images have no labels."""
    if repair is None:
        return None
    key, measure = "top1", "top-1, test"
    if repair["as_cut"]["top1"] is None:
        key, measure = "agreement", "agreement with before, test"
    steps = {"as cut": "as_cut", "BatchNorm recalibrated": "recalibrated", "reconstructed": "reconstructed"}
    shares = {label: repair[step][key] for label, step in steps.items() if repair[step] is not None}
    return Repair(measure, shares, repair["images"], repair["note"])


def _subspaces(classes: list[str] | None, indices: list[list[int]]) -> list[tuple[str, list[int]]]:
    """The first classes, named or numbered, and the features that each one keeps."""
    names = classes or [str(number) for number in range(len(indices))]
    return list(zip(names, indices, strict=True))[:SHOWN_CLASSES]
