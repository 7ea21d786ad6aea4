"""How to train: one frozen description of a run, checked before anything is read."""

from dataclasses import dataclass

import torch

from ...errors import SlimrankError, near
from .block_norm import BlockNorm
from .gates import Csg

AUGMENT = ("none", "shift", "shift+flip")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9, one epoch's warm-up at most, cosine to zero.

    `batch`: images a step (default: 128, 32 where there are fewer than 5,000 images, so that an epoch has enough steps).
    `augment`: `shift` by up to an eighth of the image, `flip` left-right; default `shift+flip` for colour images and
    `shift` for grey ones (digits are not mirror images). `smoothing`: label smoothing (Szegedy et al. 2016). `teacher_share`:
    of the loss, where there is a teacher: cross-entropy against its softened logits (Hinton et al. 2015, temperature 4).
    `patience`: stop after that many epochs without a better validation accuracy (None: never). `precision`: `bf16` runs
    forward and backward under autocast, weights and sums stay float32; `auto` takes it where the hardware multiplies it.
    `block_norm`: groups of filters that vanish together (regularizers.py), in place of weight decay. `csg`: class-specific
    gates (gates.py). With either, the last epoch's weights are the result: what they are for comes late.
    """

    epochs: int
    lr: float
    batch: int | None = None
    weight_decay: float = 5e-4
    augment: str | None = None
    smoothing: float = 0.0
    teacher_share: float = 0.5
    patience: int | None = None
    precision: str = "auto"
    seed: int = 0
    device: str = "cpu"
    block_norm: BlockNorm | None = None
    csg: Csg | None = None

    def check(self) -> "Recipe":
        """Raise SlimrankError for settings that cannot train."""
        if self.epochs < 1:
            raise SlimrankError(f"--epochs is {self.epochs}, must be at least 1")
        if not 0 < self.lr <= 10:
            raise SlimrankError(f"--lr is {self.lr}, must lie between 0 and 10; 0.02 to 0.1 is usual")
        if self.augment is not None and self.augment not in AUGMENT:
            raise SlimrankError(f"no augmentation {self.augment!r}; {near(self.augment, AUGMENT)}")
        if self.precision not in PRECISIONS:
            raise SlimrankError(f"no precision {self.precision!r}; {near(self.precision, PRECISIONS)}")
        if not 0 <= self.smoothing < 1:
            raise SlimrankError(f"--label-smoothing is {self.smoothing}, must lie in 0..1; 0.1 is usual")
        if not 0 <= self.teacher_share <= 1:
            raise SlimrankError(f"--teacher-share is {self.teacher_share}, must lie in 0..1; 0.5 is usual")
        if self.patience is not None and self.patience < 1:
            raise SlimrankError(f"--patience is {self.patience}, must be at least 1 epoch")
        if self.block_norm is not None:
            self.block_norm.check()
            if self.csg is not None:
                raise SlimrankError("--block-norm cuts features that --csg holds gates for; give one of the two")
        if self.csg is not None and self.epochs <= self.csg.first:
            raise SlimrankError(
                f"--csg from scratch gates epochs from the {self.csg.first + 1}th on, --epochs is {self.epochs}; train longer, "
                "or go on from a checkpoint with --from"
            )
        if self.patience is not None and (self.block_norm or self.csg):
            raise SlimrankError(
                "--patience keeps the best epoch; with --block-norm or --csg the last one is kept, leave it out"
            )
        return self

    @property
    def bf16(self) -> bool:
        """Whether forward and backward run in bfloat16 on this machine."""
        if self.precision != "auto":
            return self.precision == "bf16"
        if self.device != "cpu":
            return torch.cuda.is_bf16_supported()
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
