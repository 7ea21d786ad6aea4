"""Which weights of a training validate best."""

from typing import Any

from torch import Tensor, nn

from ...evaluate.accuracy import decisions, predictor
from ...evaluate.data import Images


class Judge:
    """Validates a network after each epoch, and remembers the weights that did best where it is to `keep_best`.

    `tops`: top-1 on validation, an epoch each; on images without labels, the share on which it decides as the teacher.
    `start_top1`: before the first epoch, where what training began with is a candidate.
    """

    def __init__(self, images: Images | None, teacher: nn.Module | None, keep_best: bool, device: str):
        self.images = images if images is not None and len(images) else None
        self.keep_best, self.device = keep_best, device
        self.expected: Tensor | None = None
        if self.images is not None:
            asked = None if self.images.labelled else teacher
            self.expected = self.images.labels if asked is None else self._decisions(asked)
        self.tops: list[float] = []
        self.start_top1: float | None = None
        self.best: dict[str, Tensor] = {}

    def start(self, model: nn.Module) -> None:
        """Make the weights that training begins with a candidate."""
        if self.keep_best and self.images is not None:
            self.start_top1 = self._judged(model)

    def epoch(self, model: nn.Module) -> None:
        """Validate the weights of an epoch that has ended."""
        if self.images is not None:
            self.tops.append(self._judged(model))

    def _judged(self, model: nn.Module) -> float:
        assert self.expected is not None
        found = self._decisions(model)
        top1 = int((found == self.expected).sum()) / len(found)
        if self.keep_best and top1 > max(self._reached, default=-1.0):
            self.best = {k: v.clone() for k, v in model.state_dict().items()}
        return top1

    def _decisions(self, model: nn.Module) -> Tensor:
        assert self.images is not None
        return decisions(predictor(model), self.images.batches(device=self.device))

    @property
    def _reached(self) -> list[float]:
        return self.tops if self.start_top1 is None else [self.start_top1, *self.tops]

    @property
    def best_epoch(self) -> int | None:
        """Counted from 1; 0: what training began with; None where no validation decides."""
        if not (self.keep_best and self.tops):
            return None
        return self._reached.index(max(self._reached)) + (self.start_top1 is None)

    @property
    def idle(self) -> int:
        """Epochs since the best one."""
        return len(self.tops) - (self.tops.index(max(self.tops)) + 1) if self.tops else 0

    def state(self) -> dict[str, Any]:
        return {"tops": self.tops, "start_top1": self.start_top1, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        self.tops, self.start_top1, self.best = list(map(float, state["tops"])), state["start_top1"], state["best"]
