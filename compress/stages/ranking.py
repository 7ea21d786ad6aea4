"""Rank and prune as one call each: checkpoint and options in, files and results out."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import SlimrankError
from ...evaluate.accuracy import accuracy, predictor
from ...evaluate.data import Batches, Data, Preprocessing
from ...evaluate.macs import count
from ...evaluate.pages.plots import bars, curves
from ...files import ready, write_text
from ..channels.tracing import channel_map
from ..network.checkpoint import Checkpoint, save
from ..pruning import surgery
from ..pruning.budget import Cut, within_drop
from ..pruning.budget import plan as planned
from ..pruning.costs import Costs
from ..pruning.plan import PruningPlan
from ..rankers import DATA_FREE, DEFAULT, RANKERS, ranker
from ..rankers.scores import FilterScores
from ..rankers.sensitivity import sensitivity
from ..training.gates import cut_along
from ..training.loop import train
from ..training.recalibrate import IMAGES, recalibrate
from ..training.recipe import Recipe

Opener = Callable[[Preprocessing], Data]


def scored(
    checkpoint: Checkpoint, name: str, data: Data | None,
    *, seed: int, device: str = "cpu", layers: list[str] | None = None, **options: Any,
) -> FilterScores:  # fmt: skip
    """Run one ranker on the split that it reads (its record's). `options`: what it takes beside; None is its default.

    Where counting or training is costly and the data has no `limit`, the first of a seeded shuffle do (`enough` of its record).
    """
    record = ranker(name)
    options = {k: v for k, v in options.items() if v is not None and v is not False}
    record.chosen(options)
    if record.split is not None and data is None:
        raise SlimrankError(f"ranker {name} needs images; add `data`, or take one of {', '.join(DATA_FREE)}")
    batches = None
    if data is not None and record.split is not None:
        images = data.split(record.split)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        most = len(images) if data.limit is not None else record.enough or len(images)
        batches = images.subset(order[:most]).batches(device=device)
    model = checkpoint.model.to(device)
    channels = channel_map(model, checkpoint.example().to(device))
    classes = 0 if data is None else len(data.classes)
    scores = record(model, channels, batches, classes=classes, seed=seed, layers=layers, **options)
    for layer, values in scores.scores.items():
        if not all(map(math.isfinite, [*values, *scores.ties.get(layer, [])])):
            raise SlimrankError(f"ranker {name} gives NaN or infinite scores for {layer}; check the checkpoint with `evaluate`")
    if data is not None and record.split == "validation":
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
    checkpoint: Checkpoint, out: Path, opener: Opener | None, cut: Cut, recipe: Recipe,
    *, ranker: str | None, scores: Path | None, recalibrated: bool = False, device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Cut to a budget and write the slim checkpoint; with data, test accuracy before and after.

    `recipe.epochs` 0: the network as cut. More (only with `max_drop`): every trial and the result are fine-tuned so long.
    `recalibrated`: BatchNorm's statistics anew, on training images.
    """
    ready(out)
    cut.check()
    if ranker and scores:
        raise SlimrankError("give --ranker or --scores, not both")
    if opener is None and (cut.max_drop is not None or recalibrated):
        raise SlimrankError("--max-drop and --recalibrate need images; add --data")
    if recipe.epochs and cut.max_drop is None:
        raise SlimrankError("--epochs belongs to --max-drop here; fine-tune the pruned checkpoint with `slimrank finetune`")
    replace(recipe, epochs=max(1, recipe.epochs) if recipe.epochs >= 0 else recipe.epochs).check()
    data = None
    if opener is not None:
        data = opener(checkpoint.preprocessing)
        checkpoint = checkpoint.with_classes(data)
    example = checkpoint.example(2)
    channels = channel_map(checkpoint.model, example[:1])
    ranked = (
        FilterScores.load(scores) if scores else scored(checkpoint, ranker or DEFAULT, data, seed=recipe.seed, device=device)
    )
    checkpoint.model.to("cpu")

    def sliced(cut: Cut, costs: Costs | None) -> tuple[PruningPlan, nn.Module]:
        plan = planned(checkpoint.model, channels, ranked, cut, example, costs)
        smaller = surgery.prune(checkpoint.model, channels, plan, example)
        return plan, recalibrate(smaller, calibration(data, recipe.seed)) if recalibrated and data is not None else smaller

    trials: list[list[float]] = []
    asked, top1 = cut, None
    tuned: dict[float, nn.Module] = {}
    costs = None
    if cut.max_drop is not None:
        assert data is not None
        costs = cut.costs(checkpoint.model, channels, example)
        judge = data.split("validation")
        top1 = accuracy(predictor(checkpoint.model), judge.batches(), len(data.classes)).top1

        def trial(cut: Cut) -> float:
            smaller = sliced(cut, costs)[1]
            if recipe.epochs:
                smaller, _ = train(smaller, data.split("train"), judge, recipe)
            tuned[cut.macs or 0.0] = smaller
            return accuracy(predictor(smaller), judge.batches(), len(data.classes)).top1

        cut, trials = within_drop(cut, trial, top1, say)
    plan, smaller = sliced(cut, costs)
    smaller = tuned.get(cut.macs or -1.0, smaller)
    budget = plan.budget if asked.max_drop is None else {**plan.budget, "max_drop": asked.max_drop}
    step = {"step": "prune", "ranker": plan.ranker, "budget": budget, "scope": cut.scope, "widths": plan.widths}
    gates = cut_along(checkpoint.gates, channels, channels.removed(plan.keep))
    made = checkpoint.then(smaller, **step, **({"epochs": recipe.epochs, "lr": recipe.lr} if tuned and recipe.epochs else {}))
    made = made if tuned and recipe.epochs else replace(made, gates=gates)
    shape = checkpoint.preprocessing.shape
    before, after = count(checkpoint.model, shape), count(smaller, shape)
    tops: list[Any] = [None, None]
    if data is not None:
        test = data.split("test")
        tops = [accuracy(predictor(m), test.batches(), len(data.classes)).top1 for m in (checkpoint.model, smaller)]
    save(made, out)
    done = f"after --epochs {recipe.epochs}" if tuned and recipe.epochs else "before fine-tuning"
    table = str(plan) + ("" if data is None else f"\n  top-1 {tops[0]:.4f} -> {tops[1]:.4f} on test, {done}")
    table += f"\n  parameters {before.params:,} -> {after.params:,}"
    seen = ranked.extra.get("validation_seen_in_training", False)
    if data is not None and asked.max_drop is not None:
        seen = checkpoint.validation_seen(data)
    tried = {"trials": trials, "validation_top1_before": top1} if trials else {}
    return {
        "macs_before": before.macs, "macs_after": after.macs, "params_before": before.params, "params_after": after.params,
        "top1_before": tops[0], "top1_after": tops[1], "budget": budget, "ranker": plan.ranker, "widths": plan.widths,
        "keep": plan.keep, "note": plan.note, "out": str(out), "table": table, "validation_seen_in_training": seen, **tried,
    }  # fmt: skip


def calibration(data: Data, seed: int) -> Batches:
    """Training images for BatchNorm's statistics: IMAGES of a seeded shuffle."""
    images = data.split("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(order[:IMAGES]).batches()


def measured_sensitivity(
    checkpoint: Checkpoint, opener: Opener, out: Path, *, ranker: str | None, layers: list[str] | None, seed: int, device: str
) -> tuple[FilterScores, Path]:
    """Accuracy of each layer against its own ratio, on validation images; writes scores file and figure."""
    chart = out.with_suffix(".svg")
    ready(out)
    ready(chart)
    data = opener(checkpoint.preprocessing)
    checkpoint = checkpoint.with_classes(data)
    ranked = scored(checkpoint, ranker or DEFAULT, data, seed=seed, device=device)
    images = data.split("validation")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    most = len(images) if data.limit is not None else RANKERS["car"].enough or len(images)
    batches = images.subset(order[:most]).batches(device=device)
    model = checkpoint.model.to(device)
    channels = channel_map(model, checkpoint.example().to(device))
    scores = sensitivity(model, channels, batches, ranked, classes=len(data.classes), layers=layers)
    scores = replace(scores, extra={**scores.extra, "validation_seen_in_training": checkpoint.validation_seen(data)})
    scores.save(out)
    write_text(chart, curves(scores.sensitivity or {}))
    return scores, chart
