"""The Checkpoint record: a network and everything that must travel with it."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.data import Data, Preprocessing, differing
from .forward import forward, logits_of
from .inputs import image

SEEN = (
    "warning: whoever trained this checkpoint may have trained on the validation images, and accuracy there is then memory; "
    "--validation test:0.2 takes them from the test split"
)


@dataclass(frozen=True)
class Checkpoint:
    """A network and everything that must travel with it. `history`: what was done to it, for people."""

    model: nn.Module
    name: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    classes: list[str] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    trained_on: list[dict[str, Any]] | None = None  # Data.identity of each of our own trainings; None for anybody else's
    gates: Tensor | None = None  # class-specific gates, [features, classes], of the network as it was trained

    def then(self, model: nn.Module, **step: Any) -> "Checkpoint":
        """Take the checkpoint one step on. Gates belong to the weights that they were trained with: they are left behind."""
        return replace(self, model=model, history=[*self.history, step], gates=None)

    def example(self, images: int = 1) -> Tensor:
        """Make random images for tracing, [images, channels, size, size], the same ones each time."""
        return image(self.model, self.preprocessing.shape, images)

    def with_classes(self, data: Data | None) -> "Checkpoint":
        """Check that model and data name the same classes; a model without class names takes the data's.

        With images that have no labels the checkpoint stays as it is. Raises SlimrankError where classes differ, and where
        there is no data.
        """
        if data is None:
            raise SlimrankError("this needs images; give `data`")
        outputs = self.outputs()
        if data.classes is None:
            return self
        if outputs != len(data.classes):
            raise SlimrankError(
                f"the model has {outputs} classes, `data` {data.spec} has {len(data.classes)}; give the data it was trained on"
            )
        if self.classes is not None and (pair := differing(data, self.classes)) is not None:
            mine, other = pair
            raise SlimrankError(
                f"class names differ: the model's {mine!r} is {other!r} in `data` {data.spec}; use data with the same classes, "
                "or lay a words.txt beside train/ that names them (folder, tab, name)"
            )
        return replace(self, classes=data.classes)

    def validation_seen(self, data: Data) -> bool | None:
        """Tell whether training saw what `data` calls validation: known for our own training, else None."""
        if self.trained_on is None:
            return None
        same = [one for one in self.trained_on if one["data"] == data.spec]
        if data.validation_from.startswith("train") and any(one != data.identity for one in same):
            return True
        return False if len(same) == len(self.trained_on) else None

    def taught(self, data: Data) -> "Checkpoint":
        """Note that the train split of `data` has moved these weights, where all that has is known."""
        if self.trained_on is None or data.identity in self.trained_on:
            return self
        return replace(self, trained_on=[*self.trained_on, data.identity])

    def judged_fairly(self, data: Data) -> bool:
        """Tell whether what `data` calls validation can be counted on not to have taught these weights its labels."""
        return data.classes is None or data.validation_from.startswith("test") or self.validation_seen(data) is False

    def outputs(self) -> int:
        """Count the classes told apart. Raises SlimrankError where the network does not run on one tensor of images."""
        return logits_of(forward(self.model, self.example())).shape[1]
