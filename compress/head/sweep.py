"""Accuracy of the paper's heads for every k1 and k2 (Badola et al., "Decomposing the Deep", Figure 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from ...evaluate.data import Data
from ...evaluate.pages.plots import heat_table
from ...files import write_text
from ..channels.features import Moments, Votes, cached, features
from ..network.checkpoint import Checkpoint
from .classifier import Classifier
from .cluster import Subspaces
from .fit import assemble, refitted, top1, truncated


@dataclass(frozen=True)
class Sweep:
    """top1[i][j]: test top-1 with k1s[i] votes an image and k2s[j] features a class; `dense`: the dense layer's."""

    k1s: list[int]
    k2s: list[int]
    top1: list[list[float]]
    dense: float
    fit: str
    n: int

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    def __str__(self) -> str:
        rows = [
            f"  top-1 ({self.fit}, {self.n:,} images; dense {self.dense:.4f})",
            "   k1\\k2 " + "".join(f"{k:>8}" for k in self.k2s),
        ]
        return "\n".join(
            [*rows, *(f"  {k:>6} " + "".join(f"{v:8.4f}" for v in row) for k, row in zip(self.k1s, self.top1, strict=True))]
        )

    def save(self, path: Path) -> Path:
        write_text(path, heat_table(self.top1, self.k1s, self.k2s, "k1", "k2", f"top-1, dense {self.dense:.4f}"))
        return path


def sweep(checkpoint: Checkpoint, data: Data, ks: Sequence[int], *, fit: str = "truncate", layer: str | None = None) -> Sweep:
    """Measure the heads that the votes choose for all pairs of `ks`, truncated, or refitted when `fit` is not truncate."""
    data.classes_for("`sweep`")
    given = Classifier.of(checkpoint, layer)
    ks = sorted(set(ks))
    if not ks or ks[0] < 1 or ks[-1] > given.features:
        asked, most = ",".join(map(str, ks)), given.features
        raise SlimrankError(f"`sweep` {asked}: the classifier reads {most} features; choose 1 to {most}")
    weight, bias = given.target(fit)
    moments, ballots = Moments(), [Votes(given.classes, k) for k in ks]
    for x, labels in features(checkpoint.model, given.layer, data.split("train").batches()):
        moments.add(x)
        for votes in ballots:
            votes.add(x, labels)
    seen = cached(features(checkpoint.model, given.layer, data.split("test").batches()))

    def accuracy_of(votes: Votes, k2: int) -> float:
        spaces = Subspaces(votes.choose(k2))
        fitted = truncated(weight, bias, spaces) if fit == "truncate" else refitted(weight, bias, moments, spaces)
        return top1(assemble(*fitted, spaces, given.features, "dense"), seen)

    top1s = [[accuracy_of(votes, k2) for k2 in ks] for votes in ballots]
    fit = "truncate" if fit == "truncate" else "refit"
    return Sweep(list(ks), list(ks), top1s, top1(given.dense, seen), fit, len(seen.labels))
