"""Rank and prune as one call each: checkpoint and options in, files and results out."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import SlimrankError
from ..evaluate.accuracy import accuracy, predictor
from ..evaluate.data import Data, Preprocessing
from ..evaluate.macs import count
from ..evaluate.plots import bars
from ..files import ready, write_text
from .checkpoint import Checkpoint, save
from .rankers import DATA_FREE, ENOUGH, OPTIONS, SPLIT, ranker
from .scores import FilterScores
from .selection import runtime_block, select
from .surgery import prune as cut
from .tracing import channel_map

Opener = Callable[[Preprocessing], Data]


def scored(
    checkpoint: Checkpoint, name: str, data: Data | None,
    *, seed: int, device: str = "cpu", layers: list[str] | None = None, **options: Any,
) -> FilterScores:  # fmt: skip
    """Run one ranker on the split that it reads (rankers.SPLIT). `options`: what it takes beside; None is its default.

    Where counting or training is costly and the data has no `--limit`, the first of a seeded shuffle do (rankers.ENOUGH).
    """
    function = ranker(name)
    options = {k: v for k, v in options.items() if v is not None and v is not False}
    odd = [k for k in options if k not in OPTIONS.get(name, ())]
    if odd:
        takes = ", ".join(f"--{k.replace(chr(95), chr(45))}" for k in OPTIONS.get(name, ())) or "no options"
        raise SlimrankError(f"ranker {name} takes no --{odd[0].replace('_', '-')}; it takes {takes}")
    if name not in DATA_FREE and data is None:
        raise SlimrankError(f"ranker {name} needs images; add --data, or take one of {', '.join(DATA_FREE)}")
    batches = None
    if data is not None and name not in DATA_FREE:
        images = data.split(SPLIT[name])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        most = len(images) if data.limit is not None else ENOUGH.get(name, len(images))
        batches = images.subset(order[:most]).batches(device=device)
    model = checkpoint.model.to(device)
    channels = channel_map(model, checkpoint.example().to(device))
    classes = 0 if data is None else len(data.classes)
    scores = function(model, channels, batches, classes=classes, seed=seed, layers=layers, **options)
    for layer, values in scores.scores.items():
        if not all(map(math.isfinite, [*values, *scores.ties.get(layer, [])])):
            raise SlimrankError(f"ranker {name} gives NaN or infinite scores for {layer}; check the checkpoint with `evaluate`")
    if data is not None and SPLIT.get(name) == "validation":
        scores = replace(scores, extra={**scores.extra, "validation_seen_in_training": checkpoint.validation_seen(data)})
    return scores


def rank(
    checkpoint: Checkpoint, name: str, opener: Opener | None, out: Path,
    *, layers: list[str] | None, seed: int, device: str, **options: Any,
) -> tuple[FilterScores, Path]:  # fmt: skip
    """Score the filters of all groups, or of those that `layers` belong to; write scores and chart."""
    chart = out.with_suffix(".svg")
    ready(out)
    ready(chart)
    data = None
    if opener is not None:
        data = opener(checkpoint.preprocessing)
        checkpoint = checkpoint.with_classes(data)
    scores = scored(checkpoint, name, data, seed=seed, device=device, layers=layers, **options)
    scores.save(out)
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
        "validation_seen_in_training": ranked.extra.get("validation_seen_in_training", False),
    }  # fmt: skip
