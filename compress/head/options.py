"""What a class-specific classifier is asked to be. Nothing heavy is imported here: the command line reads these options."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import SlimrankError, near
from ...evaluate.timing import Timing
from ...option import nested, option
from ..network.layout_names import INT8, LAYOUTS

SELECTS = ("histogram", "contribution", "omp", "weights", "weights+histogram")  # of select.choose
BY_GATES = "gates"  # of training/gates.py, for checkpoints trained with them
VOTING = ("histogram", "weights+histogram")
FITS = ("truncate", "refit", "train")
HEAD_LAYOUTS = ("auto", *LAYOUTS, INT8)
WITHOUT_TILES = ("dense", "gather", INT8)
INT4 = "int4"  # of ONNX Runtime, in blocks of 32 features; for bench-head only
FINAL_LAYERS = (
    "int8", INT4, "svd", "svd+rescore", "dense", "gather", "tiled", "tiled+rescore", "two-level", "two-level+rescore",
    "two-level+best",
)  # fmt: skip
AGREEMENT, DROP = 0.99, 0.01
MOST_CROPS = 1000


def number_or_auto(text: str) -> int | str:
    return text if text == "auto" else int(text)


def coverage(text: str) -> int | float:
    """A number of votes, or coverage:SHARE of the l1 norm."""
    kind, colon, share = text.partition(":")
    return float(share) if colon and kind == "coverage" else int(text)


number_or_auto.__name__ = "number, auto"  # argparse names the type of a bad value
AUTO: Callable[[str], int | str] = number_or_auto


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What a head is asked to be; `select` None is omp, `agreement` None AGREEMENT and `max_drop` None DROP."""

    timing: Timing = nested(Timing())
    select: str | None = option(
        None,
        "omp (default), contribution, histogram (the paper), weights, weights+histogram, gates (of --csg); not for tiled",
    )
    fit: str = option("train", "train (default), refit (least squares), truncate (the paper)")
    k1: int | float | None = option(None, "histogram: votes an image has (default: as k2), or coverage:0.9", read=coverage)
    k2: int | str | None = option(None, "features a class keeps (default: an eighth, at least 5), or auto", read=AUTO)
    rescore: int | str = option(
        0, "give the best N classes the dense layer's own logits (to decide as it does), or auto", read=AUTO, metavar="N"
    )
    layout: str = option("auto", "auto (default: the fastest that is accurate enough), dense, gather, tiled, int8")
    groups: int | None = option(
        None,
        "tiled: groups of classes that share their features (default: 25 classes each; with --probe their square root)",
    )
    tile: int | None = option(None, "tiled: adjacent features that go together, a power of two (default: up to 16)")
    adjacent: bool = option(False, "tiled: groups of neighbouring classes, so that no logit moves")
    probe: int | str = option(
        0, "tiled, for many classes: compute only the P groups of them that a coarse score finds best, or auto",
        read=AUTO, metavar="P",
    )  # fmt: skip
    agreement: float | None = option(None, "--rescore auto, --probe auto: share of equal decisions (default 0.99)")
    max_drop: float | None = option(None, "auto: validation top-1 that may be lost (default 0.01)")
    layer: str | None = option(None, "the classifier, to be sure which it is")
    crops: int = option(0, "also fit to N random crops of each training image (default 0; for few images)", metavar="N")
    seed: int = option(0)
    only_faster: bool = False  # the dense layer stays where no head is faster and accurate enough
    report: bool = False  # also fit subspaces that show what each class lives on, where the head itself has none (int8)
    rival: bool = True  # train the dense layer beside a trained head

    @property
    def chosen_by(self) -> str:
        return self.select or "omp"

    @property
    def any_layout(self) -> bool:
        """Whether the dense layer in int8 is an answer, too: nothing was asked for that only subspaces have.

        Not in `compress`: the microseconds are nothing there beside the network's, and its logits stay as they are.
        """
        return not any((
            self.select, self.k1, self.k2, self.groups, self.tile, self.adjacent, self.rescore, self.probe, self.only_faster,
        ))  # fmt: skip

    @property
    def votes(self) -> bool:
        """Whether the training images vote for the features."""
        return self.chosen_by in VOTING and self.layout != "tiled"

    @property
    def least_agreement(self) -> float:
        return AGREEMENT if self.agreement is None else self.agreement

    @property
    def drop(self) -> float:
        return DROP if self.max_drop is None else self.max_drop

    def check(self) -> None:
        """Raise SlimrankError for options that contradict one another, before anything is read."""
        self.timing.single("a head is chosen for one thread count and one provider; give one of each")
        check_select(self.chosen_by)
        check_fit(self.fit)
        self.timing.check()
        self._check_values()
        self._check_searches()
        self._check_layout()

    def _check_values(self) -> None:
        if self.layout not in HEAD_LAYOUTS:
            raise SlimrankError(f"no layout {self.layout!r}; {near(self.layout, HEAD_LAYOUTS)}")
        if self.layout == INT8 and (self.select or self.k1 is not None or self.k2 is not None):
            raise SlimrankError("`layout` int8 keeps every feature; leave out `select`, `k1` and `k2`")
        if isinstance(self.k1, float) and not 0 < self.k1 <= 1:
            raise SlimrankError(f"`k1` coverage:{self.k1} must be a share of the l1 norm, above 0 and at most 1")
        for name, value in (("k2", self.k2), ("rescore", self.rescore), ("probe", self.probe)):
            if isinstance(value, str) and value != "auto":
                raise SlimrankError(f"`{name}` is {value!r}, must be a number or auto")
        if not 0 <= self.crops <= MOST_CROPS:
            raise SlimrankError(f"`crops` is {self.crops}, must lie in 0..{MOST_CROPS}")
        if not 0 < self.least_agreement <= 1 or not 0 <= self.drop < 1:
            raise SlimrankError(
                f"`agreement` {self.least_agreement} and `max_drop` {self.drop} must be shares, as 0.99 and 0.01"
            )

    def _check_searches(self) -> None:
        """What is left to a search, and what the search needs to know."""
        if self.agreement is not None and "auto" not in (self.rescore, self.probe):
            raise SlimrankError("`agreement` decides `rescore` auto and `probe` auto; add one, or leave `agreement` out")
        if self.probe == "auto" and self.layout == "auto":
            raise SlimrankError("`probe` auto needs a layout to try it on; add `layout` tiled, or give `probe` a number")
        if self.probe and self.layout in WITHOUT_TILES:
            raise SlimrankError(f"`probe` computes some groups of classes only, `layout` {self.layout} has none; take tiled")
        if self.probe and self.adjacent:
            raise SlimrankError("`probe` groups the classes that are confused with one another; leave out `adjacent`")
        if self.max_drop is not None and self.layout != "auto" and self.k2 != "auto":
            raise SlimrankError("`max_drop` decides `layout` auto and `k2` auto; add one of them, or leave `max_drop` out")

    def _check_layout(self) -> None:
        if self.groups is not None and self.groups < 1:
            raise SlimrankError(f"`groups` is {self.groups}, must be at least 1")
        check_tile(self.tile)
        if self.layout == "tiled" and (self.select or self.k1):
            raise SlimrankError("`layout` tiled finds its features by co-clustering; leave out `select` and `k1`")
        if self.k1 is not None and self.chosen_by not in VOTING:
            raise SlimrankError(f"`k1` counts votes, `select` {self.chosen_by} has none; take `select` histogram")
        if self.layout in ("dense", INT8) and self.rescore:
            raise SlimrankError(
                f"`layout` {self.layout} computes every logit already; `rescore` would only add to it, leave it out"
            )
        if self.layout in WITHOUT_TILES and (self.groups or self.tile or self.adjacent):
            raise SlimrankError(f"`groups`, `tile` and `adjacent` shape tiles; `layout` {self.layout} has none")


@dataclass(frozen=True, kw_only=True)
class FinalLayerOptions:
    """What `bench-head` times; `features` and `classes` are the checkpoint's, or the matrix's, where one is given."""

    timing: Timing = nested(Timing())
    weights: Path | None = option(None, "a layer as a matrix, .npy of [classes, features]; with --queries")
    queries: Path | None = option(None, "what it is asked, .npy of [n, features]: half to fit to, half for agreement")
    features: int = option(2048, "without a checkpoint (default {default})")
    classes: int = option(1000, "without a checkpoint (default {default})")
    k: int | None = option(None, "features a class keeps (default: a sixteenth)")
    groups: int | None = option(None, "tiled: groups of classes (default 4)")
    tile: int | None = option(None, "tiled: adjacent features that go together, a power of two (default: up to 16)")
    rescore: int = option(8, "classes recomputed densely, for ...+rescore; given, for ...+best (default {default})")
    probe: int | None = option(None, "two-level: groups of classes that are computed (default: up to 8)")
    shortlist: int | None = option(
        None,
        "two-level+best, --queries: classes computed for every query, those asked for most (default: one of 64)",
    )
    layout: tuple[str, ...] = option(
        ("gather", "tiled", "tiled+rescore"),
        "comma-separated: gather, tiled, tiled+rescore (default); two-level[+rescore, +best], dense, int8, int4, svd[+rescore]",
    )


def check_select(select: str) -> None:
    if select not in (*SELECTS, BY_GATES):
        raise SlimrankError(f"no `select` {select!r}; {near(select, (*SELECTS, BY_GATES))}")


def check_fit(fit: str) -> None:
    if fit not in FITS:
        raise SlimrankError(f"no `fit` {fit!r}; {near(fit, FITS)}")


def check_tile(tile: int | None) -> None:
    if tile is not None and (tile < 1 or tile & (tile - 1)):
        raise SlimrankError(f"`tile` is {tile}, must be a power of two, as 8 or 16")


def default_k(features: int) -> int:
    """An eighth of the features, at least five (the paper's choice for CIFAR-10) where there are as many."""
    return min(features, max(5, features // 8))
