"""Rank and prune as one call each: checkpoint and options in, files and results out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import SlimrankError
from ..evaluate.accuracy import accuracy, predictor
from ..evaluate.data import Data, Preprocessing
from ..evaluate.macs import count
from ..evaluate.plots import bars
from ..files import ready, write_text
from .checkpoint import Checkpoint, save
from .rankers import DATA_FREE, ranker
from .scores import FilterScores
from .selection import runtime_block, select
from .surgery import prune as cut
from .tracing import channel_map

Opener = Callable[[Preprocessing], Data]


def scored(
    checkpoint: Checkpoint, name: str, data: Data | None, *, seed: int, device: str = "cpu", **options: Any
) -> FilterScores:
    """Run one ranker; the paper's histogram reads the training split."""
    function = ranker(name)
    if name not in DATA_FREE and data is None:
        raise SlimrankError(f"ranker {name} needs images; add --data, or take one of {', '.join(DATA_FREE)}")
    batches = None if data is None or name in DATA_FREE else data.split("train").batches(device=device)
    options = {k: v for k, v in options.items() if v is not None}
    if options and name in DATA_FREE:
        raise SlimrankError(f"ranker {name} takes no --{next(iter(options))}; leave it out")
    model = checkpoint.model.to(device)
    channels = channel_map(model, checkpoint.example())
    classes = 0 if data is None else len(data.classes)
    return function(model, channels, batches, classes=classes, seed=seed, **options)


def rank(
    checkpoint: Checkpoint, name: str, opener: Opener | None, out: Path,
    *, layers: list[str] | None, seed: int, k1: int | None, device: str,
) -> tuple[FilterScores, Path]:  # fmt: skip
    """Score the filters of all groups, or of those that `layers` belong to; write scores and chart."""
    ready(out)
    data = None
    if opener is not None:
        data = opener(checkpoint.preprocessing)
        checkpoint = checkpoint.with_classes(data)
    channels = channel_map(checkpoint.model, checkpoint.example())
    chosen = [channels.group(layer).name for layer in layers] if layers else None
    scores = scored(checkpoint, name, data, seed=seed, device=device, k1=k1)
    if chosen is not None:
        unscored = [n for n in chosen if n not in scores.scores]
        if unscored:
            raise SlimrankError(f"layer {unscored[0]} cannot be pruned: {channels.group(unscored[0]).why}")
        scores = replace(scores, scores={n: scores.scores[n] for n in chosen})
    scores.save(out)
    chart = out.with_suffix(".svg")
    write_text(chart, bars(scores.scores))
    return scores, chart


def prune(
    checkpoint: Checkpoint, out: Path, opener: Opener | None,
    *, ranker: str | None, scores: Path | None, ratio: float | None, macs: float | None, scope: str, align: int | None,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Cut to a budget and write the slim checkpoint; with data, test accuracy before and after."""
    ready(out)
    if ranker and scores:
        raise SlimrankError("give --ranker or --scores, not both")
    data = None
    if opener is not None:
        data = opener(checkpoint.preprocessing)
        checkpoint = checkpoint.with_classes(data)
    channels = channel_map(checkpoint.model, checkpoint.example())
    ranked = FilterScores.load(scores) if scores else scored(checkpoint, ranker or "l1", data, seed=seed)
    align = runtime_block() if align is None else align
    plan = select(checkpoint.model, channels, ranked, ratio=ratio, macs=macs, scope=scope, align=align)
    smaller = cut(checkpoint.model, channels, plan, checkpoint.example(2))
    step = {"step": "prune", "ranker": plan.ranker, "budget": plan.budget, "scope": scope, "widths": plan.widths}
    made = checkpoint.then(smaller, **step)
    save(made, out)
    shape = checkpoint.preprocessing.shape
    before, after = count(checkpoint.model, shape), count(smaller, shape)
    tops: list[Any] = [None, None]
    if data is not None:
        test = data.split("test")
        tops = [accuracy(predictor(m), test.batches(), len(data.classes)).top1 for m in (checkpoint.model, smaller)]
    table = str(plan) + ("" if data is None else f"\n  top-1 {tops[0]:.4f} -> {tops[1]:.4f}, before fine-tuning")
    table += f"\n  parameters {before.params:,} -> {after.params:,}"
    return {
        "macs_before": before.macs, "macs_after": after.macs, "params_before": before.params, "params_after": after.params,
        "top1_before": tops[0], "top1_after": tops[1], "budget": plan.budget, "ranker": plan.ranker, "widths": plan.widths,
        "keep": plan.keep, "out": str(out), "table": table,
    }  # fmt: skip
