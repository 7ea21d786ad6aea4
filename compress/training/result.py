"""What a training did, and under which settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a recipe came to on the images, network and hardware at hand. `asked`: the epochs it allowed."""

    batch: int
    weight_decay: float
    augment: str
    teacher: bool
    label_smoothing: float
    patience: int | None
    precision: str  # fp32 or bf16
    asked: int
    accumulate: int
    ema: float | None

    def to_dict(self) -> dict[str, Any]:
        return {"smoothing" if key == "label_smoothing" else key: value for key, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run did. `validation_top1` has one entry an epoch; the weights kept are those of `best_epoch` (from 1; 0:
    those it began with, `start_top1` on validation, which is None where they are no candidate).

    `epochs` were run, fewer than asked for where `patience` ended it. `seconds` counts a run that was taken up again in full.
    `learnt`: what regularisers hold beside the network's weights. Not `labelled`: `validation_top1` and `start_top1` are of
    the teacher's decisions.
    """

    epochs: int
    lr: float
    images: int
    seconds: float
    loss: list[float]
    validation_top1: list[float]
    best_epoch: int
    start_top1: float | None
    seed: int
    options: Settings
    learnt: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    labelled: bool = True

    @property
    def gates(self) -> Tensor | None:
        """Class-specific gates, [features, classes], where the recipe has them."""
        return self.learnt.get("gates")

    def to_dict(self) -> dict[str, Any]:
        """For JSON; tensors are left out, and agreement with the teacher is not called top-1."""
        told = {key: value for key, value in vars(self).items() if key not in ("learnt", "labelled")}
        if not self.labelled:
            for key in ("validation_{}", "start_{}"):
                told |= {key.format("agreement"): told[key.format("top1")], key.format("top1"): None}
        return {**told, "options": self.options.to_dict()}

    def __str__(self) -> str:
        tops = " ".join(f"{t:.4f}" for t in self.validation_top1)
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        measure = "top-1" if self.labelled else "agreement with the teacher"
        if self.best_epoch == 0:
            tops += f", none above {self.start_top1:.4f} before it: the weights are left as they were; try a lower `lr`"
        early = f" (stopped early, {self.options.asked} asked for)" if self.options.asked > self.epochs else ""
        return f"{epochs}{early} of {self.images:,} images in {self.seconds:.0f} s; validation {measure} {tops}"
