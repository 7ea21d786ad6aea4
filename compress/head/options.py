"""What a specialised classifier is asked to be, and what it turned out to be."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import SlimrankError, near
from ...evaluate.latency import check_settings
from ..network.subspace import INT8, LAYOUTS, check_tile
from .fit import check_fit
from .select import VOTING, check_select

AGREEMENT, DROP = 0.99, 0.01


class NotFaster(SlimrankError):
    """No layout beats the dense layer by the clock within the accuracy asked for; the message says what was tried."""


@dataclass(frozen=True)
class HeadOptions:
    """What a head is asked to be. k1: votes an image, or the share of the l1 norm they must carry; k2 None: an eighth."""

    select: str | None = None  # omp; tiles are always found by co-clustering
    fit: str = "train"
    layout: str = "auto"
    k1: int | float | None = None
    k2: int | str | None = None
    groups: int | None = None
    tile: int | None = None
    adjacent: bool = False
    rescore: int | str = 0
    probe: int | str = 0  # tiled: groups that are computed of each image; 0: all
    agreement: float | None = None  # AGREEMENT; decides --rescore auto and --probe auto
    max_drop: float | None = None  # DROP; decides --layout auto and --k2 auto
    layer: str | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    threads: int = 1
    provider: str = "cpu"
    seed: int = 0
    only_faster: bool = False  # no head at all where none is faster and accurate enough
    rival: bool = True  # train the dense layer beside a trained head

    @property
    def chosen_by(self) -> str:
        return self.select or "omp"

    @property
    def any_layout(self) -> bool:
        """Nothing was asked for that only subspaces have, so that the dense layer in int8 is an answer, too.

        Not in `compress`: the microseconds are nothing there beside the network's, and its logits stay as they are.
        """
        return not any((
            self.select, self.k1, self.k2, self.groups, self.tile, self.adjacent, self.rescore, self.probe, self.only_faster,
        ))  # fmt: skip

    @property
    def least_agreement(self) -> float:
        return AGREEMENT if self.agreement is None else self.agreement

    @property
    def drop(self) -> float:
        return DROP if self.max_drop is None else self.max_drop

    def check(self) -> None:
        check_select(self.chosen_by)
        check_fit(self.fit)
        check_settings([self.provider], self.batches, [self.threads])
        layouts = ("auto", *LAYOUTS, INT8)
        if self.layout not in layouts:
            raise SlimrankError(f"no layout {self.layout!r}; {near(self.layout, layouts)}")
        if self.layout == INT8 and (self.select or self.k1 is not None or self.k2 is not None):
            raise SlimrankError("--layout int8 keeps every feature; leave out --select, --k1 and --k2")
        if isinstance(self.k1, float) and not 0 < self.k1 <= 1:
            raise SlimrankError(f"--k1 coverage:{self.k1} must be a share of the l1 norm, above 0 and at most 1")
        for name, value in (("--k2", self.k2), ("--rescore", self.rescore), ("--probe", self.probe)):
            if isinstance(value, str) and value != "auto":
                raise SlimrankError(f"{name} is {value!r}, must be a number or auto")
        if not 0 < self.least_agreement <= 1 or not 0 <= self.drop < 1:
            raise SlimrankError(
                f"--agreement {self.least_agreement} and --max-drop {self.drop} must be shares, as 0.99 and 0.01"
            )
        if self.agreement is not None and "auto" not in (self.rescore, self.probe):
            raise SlimrankError("--agreement decides --rescore auto and --probe auto; add one, or leave --agreement out")
        if self.probe == "auto" and self.layout == "auto":
            raise SlimrankError("--probe auto needs a layout to try it on; add --layout tiled, or give --probe a number")
        if self.probe and self.layout in ("dense", "gather", INT8):
            raise SlimrankError(f"--probe computes some groups of classes only, --layout {self.layout} has none; take tiled")
        if self.probe and self.adjacent:
            raise SlimrankError("--probe groups the classes that are confused with one another; leave out --adjacent")
        if self.max_drop is not None and self.layout != "auto" and self.k2 != "auto":
            raise SlimrankError("--max-drop decides --layout auto and --k2 auto; add one of them, or leave --max-drop out")
        if self.groups is not None and self.groups < 1:
            raise SlimrankError(f"--groups is {self.groups}, must be at least 1")
        check_tile(self.tile)
        if self.layout == "tiled" and (self.select or self.k1):
            raise SlimrankError("--layout tiled finds its features by co-clustering; leave out --select and --k1")
        if self.k1 is not None and self.chosen_by not in VOTING:
            raise SlimrankError(f"--k1 counts votes, --select {self.chosen_by} has none; take --select histogram")
        if self.layout in ("dense", INT8) and self.rescore:
            raise SlimrankError(
                f"--layout {self.layout} computes every logit already; --rescore would only add to it, leave it out"
            )
        if self.layout in ("dense", "gather", INT8) and (self.groups or self.tile or self.adjacent):
            raise SlimrankError(f"--groups, --tile and --adjacent shape tiles; --layout {self.layout} has none")


@dataclass(frozen=True)
class HeadResult:
    """A specialised head beside the dense one, on the same test images. `agreement`: share of equal decisions."""

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
    top1_dense: float
    top1_head: float
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
    training: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        votes = "" if self.k1 is None else f"k1={self.k1}, "
        shape = f" in {self.groups} groups, tiles of {self.tile}" if self.layout == "tiled" else ""
        made = "int8" if self.layout == INT8 else "subspaces"
        lines = [
            f"{self.layer}: {self.k2} of {self.features} features a class ({self.select}, {self.fit}; {votes}"
            f"{self.images:,} training images), layout {self.layout}{shape}",
            f"  top-1 dense {self.top1_dense:.4f} -> {made} {self.top1_head:.4f} (r_A {self.ratio:.4f}) on {self.n:,} "
            f"images, same decision on {self.agreement:.2%}",
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


def default_k(features: int) -> int:
    """An eighth of the features, at least five (the paper's choice for CIFAR-10) where there are as many."""
    return min(features, max(5, features // 8))
