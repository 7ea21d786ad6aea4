"""What a class-specific classifier turned out to be, beside the dense one."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...evaluate.latency import Comparison
from ..network.layout_names import INT8
from .fit import Trained


@dataclass(frozen=True)
class HeadResult:
    """A specialised head beside the dense one, on the same test images. `agreement`: share of equal decisions.

    Without labels every top-1 is None, and `ratio` is the agreement.
    """

    layer: str
    select: str
    fit: str
    k1: int | None
    k2: int
    features: int
    layout: str
    groups: int
    tile: int
    folded: bool
    rescore: int
    probe: int
    images: int
    crops: int
    top1_dense: float | None
    top1_head: float | None
    top1_dense_trained: float | None
    ratio: float
    agreement: float
    shortlist_recall: float | None
    probe_recall: float | None
    n: int
    head_macs_before: int
    head_macs_after: int
    features_cut: int
    seconds: float
    indices: list[list[int]] = field(repr=False)
    training: Trained | None = None
    latency: Comparison | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "latency": None if self.latency is None else self.latency.to_dict()}

    def __str__(self) -> str:
        votes = "" if self.k1 is None else f"k1={self.k1}, "
        shape = f" in {self.groups} groups, tiles of {self.tile}" if self.layout == "tiled" else ""
        kind = "int8" if self.layout == INT8 else "subspaces"
        crops = f" and {self.crops} crops of each" if self.crops else ""
        same = f"same decision as the dense layer on {self.agreement:.2%} of {self.n:,} images, which have no labels"
        if self.top1_dense is not None and self.top1_head is not None:
            same = (
                f"top-1 dense {self.top1_dense:.4f} -> {kind} {self.top1_head:.4f} (r_A {self.ratio:.4f}) on {self.n:,} "
                f"images, same decision on {self.agreement:.2%}"
            )
        lines = [
            f"{self.layer}: {self.k2} of {self.features} features a class ({self.select}, {self.fit}; {votes}"
            f"{self.images:,} training images{crops}), layout {self.layout}{shape}",
            f"  {same}",
        ]
        if self.top1_dense_trained is not None:
            lines.append(f"  the dense layer trained the same way: {self.top1_dense_trained:.4f}")
        if self.probe:
            lines.append(
                f"  two levels: {self.probe} of {self.groups} groups computed; they hold what computing all would decide on "
                f"{self.probe_recall:.2%}"
            )
        if self.rescore:
            lines.append(f"  {self.rescore} classes rescored; the dense decision is among them on {self.shortlist_recall:.2%}")
        lines.append(f"  head MACs {self.head_macs_before:,} -> {self.head_macs_after:,}")
        if self.features_cut:
            lines.append(f"  {self.features_cut} features that no class reads were cut from the layers before")
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])
