"""Train and fine-tune as one call each: checkpoint and data in, checkpoint and result out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError
from ...evaluate.accuracy import accuracy, predictor
from ...evaluate.data import Data, Preprocessing
from ..channels.features import classifier
from ..channels.tracing import channel_map
from ..network import zoo
from ..network.checkpoint import Checkpoint, load, save
from ..training import gates
from ..training.loop import train
from ..training.recipe import BlockNorm, Recipe
from ..training.vanished import without_vanished

__all__ = ["finetune", "fresh", "from_scratch_or_checkpoint", "save"]
Opener = Callable[[Preprocessing], Data]


def fresh(
    name: str, arguments: dict[str, Any] | None, classes: list[str], channels: int, size: int | None, seed: int
) -> Checkpoint:
    """A network with random weights, fitted to the data's classes (and channels, where its constructor takes them)."""
    arguments = dict(arguments or {})
    wanted = {"num_classes": len(classes), "in_channels": channels}
    for key, value in wanted.items():
        if key not in arguments and zoo.accepts(name, key):
            arguments[key] = value
    if size and "size" not in arguments and zoo.accepts(name, "size"):
        arguments["size"] = size
    torch.manual_seed(seed)
    model = zoo.build(name, arguments)
    preprocessing = Preprocessing.default(zoo.input_channels(model), size or zoo.input_size(name))
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
        teacher=teacher.model if teacher else None, progress=progress, gates=checkpoint.gates if recipe.csg else None,
    )  # fmt: skip
    checkpoint.model.to("cpu")
    after = accuracy(predictor(model), data.split("test").batches(), len(data.classes))
    told = {"epochs": training.epochs, "lr": recipe.lr, "seed": recipe.seed, "images": training.images}
    made = checkpoint.then(model, step=step, **told, precision=training.options.precision)
    if step == "train" and len(checkpoint.history) == 1 and checkpoint.history[0]["step"] == "build":
        made = replace(made, trained_on=data.identity)  # nobody trained it before
    says = [str(training)]
    result: dict[str, Any] = {"top1_before": before.top1, "top1_after": after.top1, "n": after.n}
    result["training"] = training.to_dict()
    if recipe.block_norm is not None:
        made, result["block_norm"], line = _vanished(made, recipe.block_norm)
        says.append(line)
    if training.gates is not None:
        layer, _ = classifier(model, channel_map(model, made.example()))
        made = replace(made, gates=training.gates)
        paths = gates.measure(model, layer, training.gates, data.split("test").batches(), len(data.classes))
        result["csg"] = paths.to_dict()
        says.append(str(paths))
    result["validation_seen_in_training"] = made.validation_seen(data)
    if after.top1 < before.top1 / 2:
        says.append("note: training lost more than half of the accuracy; lower --lr")
    says.append(f"top-1 {before.top1:.4f} -> {after.top1:.4f} on {after.n:,} test images")
    return made, {**result, "says": "\n".join(says)}


def _vanished(checkpoint: Checkpoint, norm: BlockNorm) -> tuple[Checkpoint, dict[str, Any], str]:
    """Cut the groups of filters that block norm has brought to zero, and tell what is left of each."""
    channels = channel_map(checkpoint.model, checkpoint.example())
    example = checkpoint.example(16)
    smaller, found = without_vanished(checkpoint.model, channels, norm, example)
    with torch.inference_mode():
        off = float((smaller.eval()(example) - checkpoint.model.eval()(example)).abs().max())
    solver = "proximal" if norm.proximal else "subgradient"
    told = f"block norm p={norm.p:g}, q={norm.q:g}, {norm.groups} groups, lambda {norm.strength:g}, {solver} steps: "
    if norm.activation_norm or norm.spatial_norm:
        told = f"activation norm {norm.activation_norm:g}, spatial norm {norm.spatial_norm:g}; {told}"
    if not norm.strength:
        told += "not asked for, nothing vanishes"
    elif found.gone:
        gone = ", ".join(f"{layer} {groups}" for layer, groups in found.gone.items())
        told += f"{found.filters} filters cut with the groups that vanished ({gone}), largest logit difference {off:.1e}"
    else:
        told += "no group vanished" + ("" if norm.proximal else " (a subgradient never reaches zero)")
    for layer, sizes in found.relevance.items():
        told += f"\n  {layer:24} norm of each group: {' '.join(f'{size:.3g}' for size in sizes)}"
    told += "".join(f"\n  {n} filters of {layer} stay: a shortcut feeds them" for layer, n in found.fed.items())
    told += "".join(f"\n  all groups of {layer} vanished; one filter stays" for layer in found.kept_alive)
    kept = {**norm.to_dict(), **found.to_dict(), "max_abs_diff": off}
    if found.filters:
        checkpoint = checkpoint.then(smaller, step="prune", ranker="block norm", vanished=found.gone)
    return checkpoint, kept, told
