"""The simple ways to a smaller network, given the same images and epochs: what any of our figures has to beat."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ...evaluate.data import Data
from ...evaluate.macs import count
from ...export.to_onnx import export, size
from ...processes import alone
from ..channels import channels_of
from ..network.checkpoint import Checkpoint
from ..pruning.select import uniform
from ..pruning.surgery import apply_plan
from ..training.loop import train
from ..training.recipe import Recipe
from .measure import accuracy_on
from .options import PruneOptions
from .prune import prune

SCRATCH_LR = 0.1


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One simple way. `model`: its label in the latency table; `file`: its ONNX file there, of `bytes`; `seconds`: of its
    training.
    """

    name: str
    model: str
    top1: float
    macs: int
    seconds: float
    file: str
    bytes: int | None = None


def rivals(
    checkpoint: Checkpoint,
    data: Data,
    options: PruneOptions,
    recipe: Recipe,
    share: float,
    folder: Path,
    *,
    dense_file: str,
    scratch_epochs: int = 0,
) -> list[Rival]:
    """Train the dense model and a random cut as `recipe` says; with `scratch_epochs`, plain uniform widths from scratch, too.

    `share`: of the MACs that our own cut keeps. ONNX files of cut rivals are written into `folder`; the dense one has the
    shapes, and so the time, of `dense_file`.
    """
    images, classes = data.split("train"), len(data.classes_for("training"))

    def trained(model: nn.Module, recipe: Recipe, name: str, label: str, file: str) -> Rival:
        model, training = train(model, images, data.validation, recipe, keep_start=checkpoint.judged_fairly(data))
        if file != dense_file:
            alone(lambda: export(model, checkpoint.example(), folder / file, {}))
        return Rival(
            name=name, model=label, top1=accuracy_on(model, data.split("test"), classes, recipe.device).top1,
            macs=count(model, checkpoint.preprocessing.shape).macs, seconds=training.seconds, file=file,
            bytes=size(folder / file),
        )  # fmt: skip

    def each() -> Iterator[Rival]:
        yield trained(checkpoint.model, recipe, "dense model, fine-tuned equally long", "baseline", dense_file)
        cut = replace(options.cut, ratio=None, macs=share, params=None, latency=None, max_drop=None)
        random = replace(options, ranker="random", cut=cut, steps=1, training=replace(options.training, epochs=0))
        name = "random filters, same budget, fine-tuned equally long"
        smaller = prune(checkpoint, data, random, measured=False).checkpoint.model
        yield trained(smaller, recipe, name, "random filters", "rival-random.onnx")
        if scratch_epochs:
            channels = channels_of(checkpoint)
            smaller = apply_plan(checkpoint.model, channels, uniform(checkpoint.model, channels, share), checkpoint.example(2))
            name = f"plain uniform widths, from scratch, {scratch_epochs} epochs as all of training took"
            scratch = replace(recipe, epochs=scratch_epochs, lr=SCRATCH_LR)
            yield trained(_reset(smaller, recipe.seed), scratch, name, "plain uniform widths", "rival-plain.onnx")

    return list(each())


def _reset(model: nn.Module, seed: int) -> nn.Module:
    """Draw every weight anew."""
    torch.manual_seed(seed)
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model
