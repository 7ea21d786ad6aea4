"""Train and fine-tune as one call each: checkpoint and data in, checkpoint and result out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import SlimrankError
from ..evaluate.accuracy import accuracy, predictor
from ..evaluate.data import Data, Preprocessing
from . import models
from .checkpoint import Checkpoint, load, save
from .finetune import train
from .recipe import Recipe

__all__ = ["finetune", "fresh", "from_scratch_or_checkpoint", "save"]
Opener = Callable[[Preprocessing], Data]


def fresh(
    name: str, arguments: dict[str, Any] | None, classes: list[str], channels: int, size: int | None, seed: int
) -> Checkpoint:
    """A network with random weights, fitted to the data's classes (and channels, where its constructor takes them)."""
    arguments = dict(arguments or {})
    wanted = {"num_classes": len(classes), "in_channels": channels}
    for key, value in wanted.items():
        if key not in arguments and models.accepts(name, key):
            arguments[key] = value
    if size and "size" not in arguments and models.accepts(name, "size"):
        arguments["size"] = size
    torch.manual_seed(seed)
    model = models.build(name, arguments)
    preprocessing = Preprocessing.default(models.input_channels(model), size or models.input_size(name))
    return Checkpoint(model, name, arguments, preprocessing, classes, [{"step": "build", "seed": seed}])


def from_scratch_or_checkpoint(
    name: str | None, arguments: dict[str, Any] | None, start: Path | None, reading: dict[str, Any], opener: Opener,
    recipe: Recipe, *, size: int | None, progress: Path | None = None,
) -> tuple[Checkpoint, dict[str, Any]]:  # fmt: skip
    """`train`: a fresh network by name, or one read from a checkpoint, trained on the train split."""
    if start is not None:
        given = load(start, **reading)
    elif name is None:
        raise SlimrankError("train needs --model NAME (a fresh network) or --from CKPT")
    else:
        probe = opener(Preprocessing.default(1, 8))  # classes and colour, whatever the size will be
        given = fresh(name, arguments, probe.classes, probe.channels, size, recipe.seed)
        if reading["mean"] or reading["std"]:
            p = given.preprocessing
            p = Preprocessing(p.size, reading["mean"] or p.mean, reading["std"] or p.std)
            given = replace(given, preprocessing=p)
    made, result = finetune(given, opener, None, recipe, progress=progress, step="train")
    return made, {"top1": result["top1_after"], "epochs": result["training"]["epochs"], **result}


def finetune(
    checkpoint: Checkpoint, opener: Opener, teacher: Checkpoint | None, recipe: Recipe,
    *, progress: Path | None = None, step: str = "finetune",
) -> tuple[Checkpoint, dict[str, Any]]:  # fmt: skip
    """Train on the train split, keep the epoch that validates best, report test accuracy before and after.

    `progress`: a file to go on from (finetune.train).
    """
    recipe.check()
    data = opener(checkpoint.preprocessing)
    checkpoint = checkpoint.with_classes(data)
    if teacher is not None:
        if teacher.preprocessing != checkpoint.preprocessing:
            raise SlimrankError("teacher and student preprocess images differently; they must see the same pixels")
        teacher.with_classes(data)
    test = data.split("test").batches(device=recipe.device)
    before = accuracy(predictor(checkpoint.model.to(recipe.device)), test, len(data.classes))
    model, training = train(
        checkpoint.model, data.split("train"), data.validation, recipe,
        teacher=teacher.model if teacher else None, progress=progress,
    )  # fmt: skip
    checkpoint.model.to("cpu")
    after = accuracy(predictor(model), data.split("test").batches(), len(data.classes))
    told = {"epochs": training.epochs, "lr": recipe.lr, "seed": recipe.seed, "images": training.images}
    made = checkpoint.then(model, step=step, **told, precision=training.options["precision"])
    if step == "train" and len(checkpoint.history) == 1 and checkpoint.history[0]["step"] == "build":
        made = replace(made, trained_on=data.identity)  # nobody trained it before
    result = {"top1_before": before.top1, "top1_after": after.top1, "n": after.n, "training": training.to_dict()}
    result["validation_seen_in_training"] = made.validation_seen(data)
    says = f"{training}\ntop-1 {before.top1:.4f} -> {after.top1:.4f} on {after.n:,} test images"
    return made, {**result, "says": says}
