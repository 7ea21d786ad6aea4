"""Accuracy of the paper's heads for every k1 and k2 (Badola et al., Figure 1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from ...evaluate.data import Data
from ...evaluate.pages.plots import heat_table
from ...files import write_text
from ..channels.features import Moments, Votes, cached, classifier, features
from ..channels.tracing import channel_map
from ..network.checkpoint import Checkpoint
from .cluster import Subspaces
from .fit import assemble, refitted, top1, truncated
from .select import centred


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
    """The histogram's heads for all pairs of `ks`, truncated, or refitted when `fit` is not truncate."""
    channels = channel_map(checkpoint.model, checkpoint.example())
    name, dense = classifier(checkpoint.model, channels, layer)
    classes, m = dense.weight.shape
    ks = sorted(set(ks))
    if not ks or ks[0] < 1 or ks[-1] > m:
        raise SlimrankError(f"`sweep` {','.join(map(str, ks))}: the classifier reads {m} features; choose 1 to {m}")
    weight, bias = (
        dense.weight.detach().cpu(),
        dense.bias.detach().cpu() if dense.bias is not None else dense.weight.new_zeros(classes),
    )
    moments, votes = Moments(), [Votes(classes, k) for k in ks]
    for x, labels in features(checkpoint.model, name, data.split("train").batches()):
        moments.add(x)
        for one in votes:
            one.add(x, labels)
    seen = cached(features(checkpoint.model, name, data.split("test").batches()))
    found = []
    for one in votes:
        row = []
        for k2 in ks:
            spaces = Subspaces(one.choose(k2))
            made = truncated(weight, bias, spaces) if fit == "truncate" else refitted(*centred(weight, bias), moments, spaces)
            row.append(top1(assemble(*made, spaces, m, "dense"), seen))
        found.append(row)
    return Sweep(list(ks), list(ks), found, top1(dense, seen), "truncate" if fit == "truncate" else "refit", len(seen.labels))
