"""Does the ONNX file decide like the PyTorch model?"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import SlimrankError
from ..evaluate.accuracy import predictor
from ..evaluate.runner import Runner


@dataclass(frozen=True)
class Parity:
    """A model's logits against its ONNX file's, on `images` images or, as `on` says, random inputs.

    `agreement`: share of equal decisions; `relative`: the largest difference over the logits' spread (standard deviation of
    all logits of the model); `top1`: of the file, where the images have labels.
    """

    max_abs_diff: float
    relative: float
    agreement: float
    images: int
    on: str
    top1: float | None = None

    def check(self, tolerance: float) -> "Parity":
        """Raise SlimrankError where the largest difference is more than this share of the logits' spread."""
        if self.relative > tolerance:
            raise SlimrankError(
                f"the ONNX file does not compute what the model does: {self}; more than `tolerance` {tolerance} of the spread, "
                "nothing is written: make the model deterministic in eval mode (dropout, noise), or raise `tolerance`"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        top1 = "" if self.top1 is None else f", top-1 {self.top1:.4f}"
        return (
            f"largest logit difference {self.max_abs_diff:.2e} ({self.relative:.1e} of the spread), "
            f"same decision on {self.agreement:.4%} of {self.images:,} {self.on}{top1}"
        )


def parity(model: nn.Module, runner: Runner, batches: Iterable[tuple[Tensor, Any]], on: str) -> Parity:
    """Compare a model with its ONNX file, batch by batch.

    Raises SlimrankError without images, and where the logits do not vary: agreement of constants proves nothing.
    """
    predict = predictor(model)
    largest, same, right, n, labelled = 0.0, 0, 0, 0, True
    total = squares = count = 0.0
    for images, labels in tqdm(batches, desc="parity", leave=False, disable=None):
        reference, logits = predict(images).cpu(), runner(images.cpu())
        if logits.shape != reference.shape:
            raise SlimrankError(
                f"the ONNX file gives {list(logits.shape)} for the model's {list(reference.shape)}; export it again"
            )
        largest = max(largest, float((reference - logits).abs().nan_to_num(nan=torch.inf).max()))
        same += int((reference.argmax(1) == logits.argmax(1)).sum())
        labelled = labelled and labels is not None and not bool((labels < 0).any())
        right += int((logits.argmax(1) == labels.cpu()).sum()) if labelled else 0
        n += len(images)
        wide = reference.double()
        total, squares, count = total + float(wide.sum()), squares + float((wide**2).sum()), count + wide.numel()
    if not n:
        raise SlimrankError("no images to compare the ONNX file on; check `data` and `limit`")
    spread = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
    if spread < 1e-12 or not torch.isfinite(torch.tensor(spread)):
        raise SlimrankError("the logits do not vary between images and classes: the model is dead, parity proves nothing")
    return Parity(largest, largest / spread, same / n, n, on, right / n if labelled else None)
