"""Top-1 and top-5 of anything that turns images into logits."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SlimrankError
from ..processes import shared
from .dataspec import needs_labels


@dataclass(frozen=True)
class Accuracy:
    """Shares of `n` images whose class has the largest logit, or one of the five largest (of all, where there are fewer).

    `per_class`: top-1 of each class, 0 for a class without images.
    """

    top1: float
    top5: float
    n: int
    seconds: float
    per_class: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"top-1 {self.top1:.4f}  top-5 {self.top5:.4f}  on {self.n:,} images in {self.seconds:.1f} s"


def accuracy(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> Accuracy:
    """Measure top-1 and top-5 of `predict`, which maps images to logits [images, classes]; ties go to the lower class.

    Raises SlimrankError when a label has no logit, an image has no label or a logit is NaN.
    """

    def count(batch: tuple[Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
        """Images among the five largest; images of each class, those decided rightly first."""
        images, labels = batch
        logits = predict(images)
        if logits.shape[1] != classes:
            raise SlimrankError(f"the model has {logits.shape[1]} outputs, the data {classes} classes; they must match")
        if bool((labels < 0).any()):
            raise needs_labels("accuracy")
        _check_numbers(logits)
        hits = logits.argmax(1) == labels
        best = logits.topk(min(5, classes), 1).indices
        right, seen = (torch.bincount(chosen.cpu(), minlength=classes) for chosen in (labels[hits], labels))
        return int((best == labels[:, None]).any(1).sum()), right, seen

    start, top5 = time.perf_counter(), 0
    right, seen = torch.zeros(2, classes, dtype=torch.int64)
    for batch_top5, batch_right, batch_seen in shared(count, batches, "accuracy"):
        top5, right, seen = top5 + batch_top5, right + batch_right, seen + batch_seen
    n = int(seen.sum())
    if n == 0:
        raise SlimrankError("no images to measure accuracy on; check `data` and `limit`")
    per_class = (right / seen.clamp_min(1)).tolist()
    return Accuracy(int(right.sum()) / n, top5 / n, n, time.perf_counter() - start, per_class)


def decisions(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The class with the largest logit of each image, int64 [images] on the CPU; labels are not looked at.

    Raises SlimrankError without images and when a logit is NaN.
    """

    def decide(batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = predict(batch[0])
        _check_numbers(logits)
        return logits.argmax(1).cpu()

    chosen = list(shared(decide, batches, "decisions"))
    if not chosen:
        raise SlimrankError("no images to decide on; check `data` and `limit`")
    return torch.cat(chosen)


def _check_numbers(logits: Tensor) -> None:
    if bool(torch.isnan(logits).any()):
        raise SlimrankError("the model's logits are NaN on real images; the checkpoint is damaged or overflowed")


def predictor(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Make a function from images to logits of a model: in eval mode, without gradients."""

    def predict(images: Tensor) -> Tensor:
        model.eval()
        with torch.inference_mode():
            logits: Tensor = model(images)
            return logits

    return predict
