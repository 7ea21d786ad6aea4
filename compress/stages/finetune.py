"""Train a checkpoint on, with or without a teacher; from scratch by network name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError
from ...evaluate.data import Data, Preprocessing
from ...evaluate.dataspec import DataSpec, needs_labels
from ...evaluate.imagespec import ImageSpec
from ..channels import channels_of
from ..channels.features import classifier
from ..network import zoo
from ..network.adapt import adapt
from ..network.checkpoint import Checkpoint
from ..network.device import on
from ..network.inputs import image, seen
from ..network.plain import fuse
from ..training import gates
from ..training.loop import train
from ..training.recipe import BlockNorm, Recipe
from ..training.result import Training
from ..training.vanished import Vanished, without_vanished
from .measure import agreement, decided


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """A checkpoint that was trained, with test accuracy before and after on `n` images; where these have no labels, with the
    share of them on which it decides as its teacher."""

    checkpoint: Checkpoint
    training: Training
    top1_before: float | None
    top1_after: float | None
    n: int
    agreement_before: float | None = None
    agreement_after: float | None = None
    block_norm: "Shrunk | None" = None
    csg: gates.Gated | None = None
    validation_seen: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "top1_before": self.top1_before, "top1_after": self.top1_after, "agreement_before": self.agreement_before,
            "agreement_after": self.agreement_after, "n": self.n,
            "training": self.training.to_dict(),
            **({"block_norm": self.block_norm.to_dict()} if self.block_norm else {}),
            **({"csg": self.csg.to_dict()} if self.csg else {}),
            "validation_seen_in_training": self.validation_seen, "says": str(self),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [str(self.training), *(str(part) for part in (self.block_norm, self.csg) if part is not None)]
        before, after, what = self.top1_before, self.top1_after, "top-1"
        if before is None or after is None:
            before, after, what = self.agreement_before or 0.0, self.agreement_after or 0.0, "agreement with the teacher"
        if after < before / 2:
            lines.append("note: training lost more than half of the accuracy; lower `lr`")
        return "\n".join([*lines, f"{what} {before:.4f} -> {after:.4f} on {self.n:,} test images"])


def finetune(
    checkpoint: Checkpoint,
    data: Data,
    recipe: Recipe,
    *,
    teacher: Checkpoint | None = None,
    progress: Path | None = None,
    step: str = "finetune",
) -> Finetuned:
    """Train on the train split, keep the epoch that validates best, measure test accuracy before and after.

    Images without labels are learnt from the teacher alone. `progress`: a file to go on from (training/loop.py). Raises
    SlimrankError for a recipe that cannot train, a teacher that sees images differently, data of other classes, and data of
    none without a teacher.
    """
    recipe.check()
    checkpoint = checkpoint.with_classes(data)
    if data.classes is None and teacher is None:
        raise needs_labels("training", "add `teacher`, whose decisions are learnt, or data with classes")
    if recipe.csg is not None:
        data.classes_for("`csg`")
    if teacher is not None:
        if teacher.preprocessing != checkpoint.preprocessing:
            raise SlimrankError("teacher and student preprocess images differently; they must see the same pixels")
        teacher.with_classes(data)
    before = decided(checkpoint.model, data, device=recipe.device)
    model, training = train(
        checkpoint.model, data.split("train"), data.validation, recipe,
        keep_start=checkpoint.judged_fairly(data), teacher=teacher.model if teacher else None, progress=progress,
        gates=checkpoint.gates if recipe.csg else None,
    )  # fmt: skip
    model = fuse(model, checkpoint.example())
    after = decided(model, data, device=recipe.device)
    taught = None
    if data.classes is None and teacher is not None:
        taught = decided(teacher.model, data, device=recipe.device)
    told = {"epochs": training.epochs, "lr": recipe.lr, "seed": recipe.seed, "images": training.images}
    trained = checkpoint.then(model, step=step, **told, precision=training.options.precision)
    if step == "train" and len(checkpoint.history) == 1 and checkpoint.history[0]["step"] == "build":
        trained = replace(trained, trained_on=[])  # nobody trained it before
    trained = trained.taught(data)
    shrunk, gated = None, None
    if recipe.block_norm is not None:
        trained, shrunk = _without_vanished(trained, recipe.block_norm)
    if training.gates is not None:
        layer, _ = classifier(model, channels_of(trained), trained.example())
        trained = replace(trained, gates=training.gates)
        with on(recipe.device, model):
            batches = data.split("test").batches(device=recipe.device)
            gated = gates.measure_gates(model, layer, training.gates, batches, len(data.classes_for("`csg`")))
    return Finetuned(
        checkpoint=trained, training=training, top1_before=before.top1, top1_after=after.top1, n=len(after.classes),
        agreement_before=None if taught is None else agreement(taught, before),
        agreement_after=None if taught is None else agreement(taught, after),
        block_norm=shrunk, csg=gated, validation_seen=trained.validation_seen(data),
    )  # fmt: skip


def fresh(
    name: str, arguments: dict[str, Any] | None, classes: list[str], channels: int, images: ImageSpec | None, seed: int
) -> Checkpoint:
    """A network with random weights, fitted to the data's classes (and channels, where its constructor takes them)."""
    folder, images = zoo.resolved(name, arguments), images or ImageSpec()
    name, arguments = (name, dict(arguments or {})) if folder is None else (folder.name, folder.arguments)
    wanted = {"num_classes": len(classes), "in_channels": channels}
    for key, value in wanted.items():
        if key not in arguments and zoo.accepts(name, key):
            arguments[key] = value
    if isinstance(images.size, int) and "size" not in arguments and zoo.accepts(name, "size"):
        arguments["size"] = images.size
    torch.manual_seed(seed)
    model = zoo.build(name, arguments)
    preprocessing, _ = seen(model, name, images, usual=folder.preprocessing if folder else None)
    adapt(model, image(model, preprocessing.shape), len(classes))
    return Checkpoint(model, name, arguments, preprocessing, classes, [{"step": "build", "seed": seed}])


def untrained(
    name: str, arguments: dict[str, Any] | None, spec: DataSpec, *, seed: int, images: ImageSpec | None = None
) -> Checkpoint:
    """Build a network by name with random weights, for the classes and colours of a data set; `images`: how it sees them."""
    probe = spec.open(Preprocessing.default(1, 8))  # classes and colour, whatever the size will be
    return fresh(name, arguments, probe.classes_for("training"), probe.channels, images, seed)


@dataclass(frozen=True)
class Shrunk:
    """What block norm has brought to zero and was cut; `max_abs_diff`: largest difference of a logit, on random images."""

    norm: BlockNorm
    vanished: Vanished
    max_abs_diff: float

    def to_dict(self) -> dict[str, Any]:
        return {**self.norm.to_dict(), **self.vanished.to_dict(), "max_abs_diff": self.max_abs_diff}

    def __str__(self) -> str:
        norm, gone = self.norm, self.vanished.gone
        solver = "proximal" if norm.proximal else "subgradient"
        said = f"block norm p={norm.p:g}, q={norm.q:g}, {norm.groups} groups, lambda {norm.strength:g}, {solver} steps: "
        if norm.activation_norm or norm.spatial_norm:
            said = f"activation norm {norm.activation_norm:g}, spatial norm {norm.spatial_norm:g}; {said}"
        if not norm.strength:
            said += "not asked for, nothing vanishes"
        elif gone:
            names = ", ".join(f"{layer} {groups}" for layer, groups in gone.items())
            said += (
                f"{self.vanished.filters} filters cut with the groups that vanished ({names}), "
                f"largest logit difference {self.max_abs_diff:.1e}"
            )
        else:
            said += "no group vanished" + ("" if norm.proximal else " (a subgradient never reaches zero)")
        lines = [said]
        for layer, sizes in self.vanished.relevance.items():
            lines.append(f"  {layer:24} norm of each group: {' '.join(f'{size:.3g}' for size in sizes)}")
        lines += [f"  {n} filters of {layer} stay: a shortcut feeds them" for layer, n in self.vanished.fed.items()]
        lines += [f"  all groups of {layer} vanished; one filter stays" for layer in self.vanished.kept_alive]
        return "\n".join(lines)


def _without_vanished(checkpoint: Checkpoint, norm: BlockNorm) -> tuple[Checkpoint, Shrunk]:
    """Cut the groups of filters that block norm has brought to zero."""
    example = checkpoint.example(16)
    smaller, vanished = without_vanished(checkpoint.model, channels_of(checkpoint), norm, example)
    with torch.inference_mode():
        difference = float((smaller.eval()(example) - checkpoint.model.eval()(example)).abs().max())
    if vanished.filters:
        checkpoint = checkpoint.then(smaller, step="prune", ranker="block norm", vanished=vanished.gone)
    return checkpoint, Shrunk(norm, vanished, difference)
