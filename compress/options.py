"""What one `compress` run is asked for: the stages' own options, checked before anything is read. Free of torch."""

from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import SlimrankError, near
from ..evaluate.dataspec import DataSpec, needs_labels
from ..evaluate.timing import Timing
from ..option import flat, nested, option
from .head.options import BY_GATES, HeadOptions
from .pruning.options import BUDGETS, Cut
from .rankers import DEFAULT
from .stages.options import ExportOptions, PruneOptions
from .training.recipe import Recipe

HEADS = ("auto", "linear", "gather", "tiled", "int8")
HALF = Cut(macs=0.5)
TUNING = Recipe(epochs=5, lr=0.02)
TRAINING = tuple(one.name for one in fields(Recipe))  # said once, for all that is trained


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """What `compress` was asked for; a folder made with other options is refused.

    Without a budget, half of the MACs are kept. `training` fine-tunes after the last cut, and every trial of `max_drop`;
    `timing`, `seed` and `device` hold for all stages. On images without labels the classifier is kept, and `epochs` that are
    asked for learn what the given network decides. `scratch_epochs`: of a uniform network from scratch beside the rivals.
    """

    data: DataSpec | None = None
    pruning: PruneOptions = nested(PruneOptions(), without=("batch", "threads", "providers", *TRAINING), table="prune")
    training: Recipe = nested(TUNING, without=("teacher_share", "epochs"), table="finetune")
    epochs: int | None = option(
        None, f"passes over the training images (default {TUNING.epochs}; 0 without labels)", table="finetune"
    )
    subspaces: HeadOptions = nested(HeadOptions(), only=("select", "fit", "k1", "k2", "rescore"), table="specialize")
    timing: Timing = nested(Timing(), table="timing")
    head: str = option(
        "auto", "auto (default: subspaces where they are faster), linear, gather, tiled, int8", table="specialize"
    )
    int8: bool = option(
        False, "model.onnx in int8 where that is faster and accurate (see export), and --latency counts it; needs --data",
        table="export",
    )  # fmt: skip
    rivals: bool = option(False, "also train the dense model and a random cut equally long")
    seed: int = option(0)
    device: str = option("cpu")
    scratch_epochs: int = 0

    @property
    def cut(self) -> Cut:
        """The budget asked for; half of the MACs where none is."""
        cut = replace(self.pruning.cut, int8=self.int8 and self.pruning.cut.clocked)
        return replace(cut, macs=HALF.macs) if all(getattr(cut, name) is None for name in BUDGETS) else cut

    @property
    def _clock(self) -> Timing:
        """What decides a cut and a head: the first thread count and provider, all batch sizes."""
        return replace(self.timing, threads=self.timing.threads[:1], providers=self.timing.providers[:1])

    @property
    def finetuning(self) -> Recipe:
        """What trains after the last cut; `epochs` 0: nothing does."""
        usual = self.training.epochs if self.data is None or self.data.labelled else 0
        epochs = usual if self.epochs is None else self.epochs
        return replace(self.training, epochs=epochs, seed=self.seed, device=self.device)

    @property
    def prune(self) -> PruneOptions:
        """The options of the prune stage; its trials are trained as the result would be."""
        epochs = self.finetuning.epochs if self.cut.max_drop is not None else 0
        return replace(
            self.pruning, cut=self.cut, timing=self._clock if self.cut.clocked else None,
            training=replace(self.finetuning, epochs=epochs), seed=self.seed, device=self.device,
        )  # fmt: skip

    @property
    def export(self) -> ExportOptions:
        """The options of the export stage."""
        return ExportOptions(int8=self.int8, timing=self._clock if self.int8 else None)

    @property
    def specialize(self) -> HeadOptions:
        """The options of the head; k2 auto finds the smallest within a hundredth of top-1."""
        return replace(
            self.subspaces, layout="auto" if self.head == "linear" else self.head, timing=self._clock, seed=self.seed,
            only_faster=self.head == "auto", rival=False, report=True,
        )  # fmt: skip

    def check(self) -> "CompressOptions":
        """Raise SlimrankError for what contradicts itself."""
        self.timing.check()
        images = self.data is not None
        labels = self.data is None or self.data.labelled
        self.prune.check(images, labels=labels)
        if self.head not in HEADS:
            raise SlimrankError(f"no head {self.head!r}; {near(self.head, HEADS)}")
        self.specialize.check()
        if self.subspaces.select == BY_GATES:
            raise SlimrankError("`select` gates is for specialize: compress moves the weights that gates were trained with")
        if not images and (self.rivals or self.head in ("gather", "tiled", "int8")):
            raise SlimrankError("`rivals` and `head` gather, tiled or int8 need images; add `data`")
        self.export.check(images)
        if self.int8 and self._clock.providers != ("cpu",):
            raise SlimrankError("`int8` is for the CPU: name cpu first in `providers`, or leave `int8` out")
        if not labels and self.rivals:
            raise needs_labels("`rivals`")
        replace(self.finetuning, epochs=self.finetuning.epochs or 1).check()
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every option by name, as the report holds it."""
        spec = flat(self.data) if self.data else {**flat(DataSpec), "data": None}
        return {
            **spec, **flat(self), "ranker": self.pruning.ranker or DEFAULT, "macs": self.cut.macs,
            "epochs": self.finetuning.epochs, "scratch_epochs": self.scratch_epochs,
        }  # fmt: skip
