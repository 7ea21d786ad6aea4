"""How to train: one frozen description of a run, checked before anything is read. Free of torch: the parser reads it."""

import argparse
import math
from dataclasses import dataclass, replace
from typing import Any

from ...errors import SlimrankError, near
from ...option import option

AUGMENT = ("none", "shift", "shift+flip", "crop", "crop+flip")
PRECISIONS = ("auto", "fp32", "bf16")
PROXIMAL = ((2.0, 1.0), (1.0, 1.0))  # (p, q) whose proximal step has a closed form
FIRST, EVERY = 10, 3  # epochs from scratch before the first gated one; one of how many is gated


@dataclass(frozen=True)
class BlockNorm:
    """Norm of blocks of filters that joins the loss (block_norm.py): `groups` blocks a layer, `strength` is lambda.

    `activation_norm` and `spatial_norm` are the weights of two further terms on the feature maps.
    """

    p: float = 2.0
    q: float = 1.0
    groups: int = 5
    strength: float = 0.0
    activation_norm: float = 0.0
    spatial_norm: float = 0.0

    def check(self) -> "BlockNorm":
        for name, value in (("P", self.p), ("Q", self.q)):
            if not 1 <= value <= math.inf:
                raise SlimrankError(
                    f"`block_norm`: {name} is {value}, must lie in 1..inf; 2,1,5,1e-3 is the paper's 2,1 in 5 groups"
                )
        if self.groups < 1:
            raise SlimrankError(f"`block_norm`: {self.groups} groups; take at least 1")
        weights = {
            "`block_norm`: LAMBDA": self.strength, "`activation_norm`": self.activation_norm,
            "`spatial_norm`": self.spatial_norm,
        }  # fmt: skip
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise SlimrankError(f"{name} is {value}, must be a number, 0 or more")
        if not any(weights.values()):
            raise SlimrankError("`block_norm`: LAMBDA and the other two weights are 0: nothing is asked for; leave it out")
        return self

    @property
    def proximal(self) -> bool:
        """Whether steps are proximal, which reaches zero; else by subgradient, which does not."""
        return (self.p, self.q) in PROXIMAL

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: p and q as text."""
        return {
            "p": str(self.p), "q": str(self.q), "groups": self.groups, "strength": self.strength,
            "activation": self.activation_norm, "spatial": self.spatial_norm,
            "solver": "proximal" if self.proximal else "subgradient",
        }  # fmt: skip


@dataclass(frozen=True)
class Csg:
    """When epochs pass the class-specific gates (gates.py): from epoch `first` on (counted from 0), one in three."""

    first: int = FIRST

    def gated(self, epoch: int) -> bool:
        return epoch >= self.first and (epoch - self.first) % EVERY == 0


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9, one epoch's warm-up at most, cosine to zero.

    `augment`: `shift` by up to an eighth of the image, `crop` a random region of the picture and scale it to the size
    (RandomResizedCrop, ImageNet's), `flip` left-right; default `shift+flip` for colour images and
    `shift` for grey ones (digits are not mirror images). `label_smoothing`: Szegedy et al. 2016. `patience`: stop after that
    many epochs without a better validation accuracy (None: never). `precision`: `bf16` runs forward and backward under
    autocast, weights and sums stay float32; `auto` takes it where the hardware multiplies it. `teacher_share`: of the loss,
    where there is a teacher: cross-entropy against its softened logits (Hinton et al. 2015, temperature 4). `batch`: images at
    once (default: 128, 32 where there are fewer than 5,000 images, so that an epoch has enough steps). `accumulate`: batches a
    step; their gradients add up as if they were one, but for BatchNorm's statistics. `ema`: decay of an exponential moving
    average of the weights, which is validated and kept in place of the last ones (average.py). `sync_batchnorm`: of several
    processes (parallel.py) each takes its part of a batch; statistics are those of the whole batch, not of the part.
    `block_norm` acts in place of weight decay. With `block_norm` or `csg`, the last epoch's weights are the result: what they
    are for comes late.
    """

    epochs: int = option(5, "passes over the training images (default {default})")
    lr: float = option(0.02, "highest learning rate, SGD (default {default})")
    augment: str | None = option(None, "none, shift, shift+flip (default: flip for colour images only), crop, crop+flip")
    label_smoothing: float = option(0.0, "0.1 is usual (default 0)")
    patience: int | None = option(None, "stop after so many epochs without a better validation top-1")
    precision: str = option("auto", "auto (bf16 where the hardware has it), fp32, bf16")
    teacher_share: float = option(0.5, "of the loss (default 0.5)")
    accumulate: int = option(1, "batches whose gradients add up to one step (default 1)")
    ema: float | None = option(None, "keep a moving average of the weights with this decay, as 0.999", metavar="DECAY")
    sync_batchnorm: bool = option(False, "BatchNorm over the whole batch where several processes share it (CUDA only)")
    seed: int = option(0)
    device: str = option("cpu")
    batch: int | None = None
    weight_decay: float = 5e-4
    block_norm: BlockNorm | None = None  # set by `Interpretable`, as csg is
    csg: Csg | None = None

    def check(self) -> "Recipe":
        """Raise SlimrankError for settings that cannot train."""
        if self.epochs < 1:
            raise SlimrankError(f"`epochs` is {self.epochs}, must be at least 1")
        if not 0 < self.lr <= 10:
            raise SlimrankError(f"`lr` is {self.lr}, must lie between 0 and 10; 0.02 to 0.1 is usual")
        if self.augment is not None and self.augment not in AUGMENT:
            raise SlimrankError(f"no augmentation {self.augment!r}; {near(self.augment, AUGMENT)}")
        if self.precision not in PRECISIONS:
            raise SlimrankError(f"no precision {self.precision!r}; {near(self.precision, PRECISIONS)}")
        if not 0 <= self.label_smoothing < 1:
            raise SlimrankError(f"`label_smoothing` is {self.label_smoothing}, must lie in 0..1; 0.1 is usual")
        if not 0 <= self.teacher_share <= 1:
            raise SlimrankError(f"`teacher_share` is {self.teacher_share}, must lie in 0..1; 0.5 is usual")
        if self.accumulate < 1:
            raise SlimrankError(f"`accumulate` is {self.accumulate}, must be at least 1 batch")
        if self.ema is not None and not 0 < self.ema < 1:
            raise SlimrankError(f"`ema` is {self.ema}, must lie between 0 and 1; 0.999 is usual, 0.99 for few steps")
        if self.ema is not None and self.keeps_last:
            raise SlimrankError("`ema` keeps averaged weights; with `block_norm` or `csg` the last ones are kept, leave it out")
        if self.sync_batchnorm and self.device == "cpu":
            raise SlimrankError("`sync_batchnorm`: PyTorch has it on CUDA only; leave it out, or add `device` cuda")
        if self.sync_batchnorm and self.keeps_last:
            raise SlimrankError("`block_norm` and `csg` watch the network's own layers; leave `sync_batchnorm` out")
        if self.patience is not None and self.patience < 1:
            raise SlimrankError(f"`patience` is {self.patience}, must be at least 1 epoch")
        if self.block_norm is not None:
            self.block_norm.check()
            if self.csg is not None:
                raise SlimrankError("`block_norm` cuts features that `csg` holds gates for; give one of the two")
        if self.csg is not None and self.epochs <= self.csg.first:
            raise SlimrankError(
                f"`csg` from scratch gates epochs from the {self.csg.first + 1}th on, `epochs` is {self.epochs}; train longer, "
                "or go on from a checkpoint with `start`"
            )
        if self.patience is not None and self.keeps_last:
            raise SlimrankError(
                "`patience` keeps the best epoch; with `block_norm` or `csg` the last one is kept, leave it out"
            )
        return self

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch's weights are the result, whichever validates best."""
        return self.block_norm is not None or self.csg is not None

    @property
    def decay(self) -> float:
        """Weight decay in effect."""
        return 0.0 if self.block_norm is not None and self.block_norm.strength else self.weight_decay

    @property
    def remedy(self) -> str:
        """What to do about a loss that is no longer finite."""
        return f"lower `lr` from {self.lr}" + ("" if self.block_norm is None else " or `block_norm`'s LAMBDA")


def read_block_norm(text: str) -> BlockNorm:
    """Read P,Q,GROUPS,LAMBDA; P and Q may be inf."""
    try:
        p, q, groups, strength = text.split(",")
        return BlockNorm(float(p), float(q), int(groups), float(strength))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not P,Q,GROUPS,LAMBDA, four numbers as 2,1,5,0.1") from error


@dataclass(frozen=True)
class Interpretable:
    """Options of `train` alone: what makes filters interpretable while they are learnt."""

    block_norm: BlockNorm | None = option(
        None, "groups of filters that vanish together and are cut, as 2,1,5,1e-3 (in place of weight decay)",
        read=read_block_norm, metavar="P,Q,GROUPS,LAMBDA",
    )  # fmt: skip
    activation_norm: float | None = option(None, "weight of: filters of a group fire in the same region")
    spatial_norm: float | None = option(None, "weight of: a filter fires in one place")
    csg: bool = option(False, "class-specific gates on the classifier's features, every third epoch; kept with it")

    def added_to(self, recipe: Recipe, *, from_scratch: bool) -> Recipe:
        """The recipe with block norm and gates where they are asked for; from a checkpoint the first epoch is gated."""
        norm = self.block_norm
        if any(given is not None for given in (norm, self.activation_norm, self.spatial_norm)):
            norm = replace(
                norm or BlockNorm(), activation_norm=self.activation_norm or 0.0, spatial_norm=self.spatial_norm or 0.0
            )
        return replace(recipe, block_norm=norm, csg=Csg(FIRST if from_scratch else 0) if self.csg else None)
