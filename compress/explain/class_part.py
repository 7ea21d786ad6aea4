"""The classes' part of an explanation: influential features, how far classes share them, noise, and gates."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ...evaluate.data import Data, readable
from ..channels.features import Moments, Votes, features, survey
from ..head.options import default_k
from ..network.checkpoint import Checkpoint
from ..training import gates
from .classes import ClassFeatures, Means, Noise, SetOverlap, class_features, noise_test, overlap


@dataclass(frozen=True, kw_only=True)
class GatesPart:
    """Class-specific gates on test images; `indices`: each class's features of the widest gates."""

    measured: gates.Gated
    indices: list[list[int]]
    overlap: SetOverlap

    def to_dict(self) -> dict[str, Any]:
        return {**self.measured.to_dict(), "indices": self.indices, "overlap": asdict(self.overlap)}


@dataclass(frozen=True, kw_only=True)
class ClassPart:
    """What every class lives on. `classifier`: the layer's name; `features`: that it reads; `k1` votes an image, `k2`
    features a class; `gates`: None where the checkpoint has none that fit."""

    classifier: str
    features: int
    k1: int
    k2: int
    train_images: int
    test_images: int
    classes: list[ClassFeatures]
    overlap: SetOverlap
    noise: Noise
    gates: GatesPart | None

    def to_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = {**asdict(self), "noise": self.noise.to_dict()}
        if self.gates is None:
            del fields["gates"]
        else:
            fields["gates"] = self.gates.to_dict()
        return fields

    def __str__(self) -> str:
        sets, mean = self.overlap, self.noise.mean
        lines = [
            f"  {self.k2} influential features a class (k1={self.k1}) of {self.features}; mean mutual information of two "
            f"classes' sets {sets.all_pairs:.4f} nats, {sets.different_classes:.4f} of different classes "
            f"(random sets {sets.chance:.4f})",
            f"  noise test, mean accuracy of a class: {mean('whole'):.4f} as it is, "
            f"{mean('influential_replaced'):.4f} with its influential features replaced, "
            f"{mean('random_replaced'):.4f} with as many random ones, {mean('others_replaced'):.4f} with all others",
        ]
        if self.gates is not None:
            measured = self.gates.measured
            lines.append(
                f"  gates: density {measured.density:.3f}, top-1 {measured.top1:.4f} plain, "
                f"{measured.top1_gated:.4f} gated (given the true class), {measured.top1_own:.4f} by each class's own"
            )
        return "\n".join(lines)


def explain_classes(
    checkpoint: Checkpoint, data: Data, layer: str, linear: nn.Linear,
    *, k1: int | None, k2: int | None, seed: int, device: str, say: Callable[[str], None],
) -> tuple[ClassPart, list[str]]:  # fmt: skip
    """Learn the classes' features on training images, test them on test images; beside it, notes.

    `layer`, `linear`: the classifier's name and module. `k2` None: an eighth of its features, at least 5; `k1` None: as `k2`.
    """
    names = data.classes_for("explain")
    width, classes = linear.in_features, len(names)
    k2 = default_k(width) if k2 is None else k2
    k1 = k2 if k1 is None else k1
    say("classes: influential features, overlap, noise")
    votes, means, moments = Votes(classes, k1), Means(classes), Moments()
    train, test = data.split("train"), data.split("test")
    survey(features(checkpoint.model, layer, train.batches(device=device)), votes.add, means.add, moments.add)
    notes = []
    empty = [names[i] for i in (votes.images == 0).nonzero().flatten().tolist()]
    if empty:
        notes.append(f"{len(empty)} classes have no training images ({', '.join(empty[:3])}): they take what all vote for")
    chosen = votes.choose(k2)
    noise = noise_test(features(checkpoint.model, layer, test.batches(device=device)), linear, chosen, moments, seed)
    gates_part = None
    if checkpoint.gates is not None:
        if tuple(checkpoint.gates.shape) == (width, classes):
            measured = gates.measure_gates(checkpoint.model, layer, checkpoint.gates, test.batches(device=device), classes)
            indices = gates.choose(checkpoint.gates, linear.weight.detach().cpu(), k2)
            gates_part = GatesPart(measured=measured, indices=indices.tolist(), overlap=overlap(indices, width, seed))
        else:
            shape = tuple(checkpoint.gates.shape)
            notes.append(f"the gates are of {shape} features and classes, the classifier has {(width, classes)}")
    part = ClassPart(
        classifier=layer, features=width, k1=k1, k2=k2, train_images=len(train), test_images=len(test),
        classes=class_features(readable(data), linear, votes, means, k2), overlap=overlap(chosen, width, seed), noise=noise,
        gates=gates_part,
    )  # fmt: skip
    return part, notes
