"""What one `compress` run is asked for, checked before anything is read."""

from dataclasses import dataclass

from ..errors import SlimrankError, near
from ..evaluate.latency import check_settings
from .head.options import BY_GATES, HeadOptions
from .pruning.budget import Cut
from .rankers import DATA_FREE, DEFAULT, ranker
from .training.recipe import Recipe

HEADS = ("auto", "linear", "gather", "tiled", "int8")


@dataclass(frozen=True)
class Options:
    """What `compress` was asked for; a DIR made with other options is refused."""

    data: str | None = None
    validation: str = "train:0.1"
    limit: int | None = None
    download: bool = False
    ranker: str = DEFAULT
    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    scope: str = "layer"
    align: int | None = None
    protect: tuple[str, ...] = ()
    min_filters: int = 1
    timed: bool = False
    steps: int = 1
    recover: int = 1  # epochs between steps
    epochs: int = 5
    lr: float = 0.02
    augment: str | None = None
    label_smoothing: float = 0.0
    patience: int | None = None
    precision: str = "auto"
    distill: bool = False
    head: str = "auto"
    select: str | None = None
    fit: str = "train"
    k1: int | float | None = None
    k2: int | str | None = None
    rescore: int | str = 0
    batch: tuple[int, ...] = (1, 8, 32)
    threads: tuple[int, ...] = (1,)
    providers: tuple[str, ...] = ("cpu",)
    rivals: bool = False
    scratch_epochs: int = 0  # epochs of a uniform network from scratch, beside the others; the demo sets it
    seed: int = 0
    device: str = "cpu"

    def recipe(self, epochs: int, lr: float) -> Recipe:
        return Recipe(
            epochs, lr, augment=self.augment, label_smoothing=self.label_smoothing, patience=self.patience,
            precision=self.precision, seed=self.seed, device=self.device,
        )  # fmt: skip

    @property
    def cut(self) -> Cut:
        """The budget asked for; half of the MACs where none is."""
        none = all(v is None for v in (self.ratio, self.macs, self.params, self.latency, self.max_drop))
        return Cut(
            self.ratio, 0.5 if none else self.macs, self.params, self.latency, self.max_drop, self.scope, self.align,
            self.protect, self.min_filters, self.timed, self.batch, self.threads[0], self.providers[0],
        )  # fmt: skip

    @property
    def subspaces(self) -> HeadOptions:
        """The head; k2 auto finds the smallest within a hundredth of top-1."""
        return HeadOptions(
            select=self.select, fit=self.fit, layout="auto" if self.head == "linear" else self.head, k1=self.k1, k2=self.k2,
            rescore=self.rescore, batch=self.batch, threads=self.threads[:1], providers=self.providers[:1], seed=self.seed,
            only_faster=self.head == "auto", report=True, rival=False,
        )  # fmt: skip

    def check(self) -> None:
        check_settings(self.providers, self.batch, self.threads)
        self.cut.check()
        record = ranker(self.ranker)
        if self.steps < 1 or self.recover < 0:
            raise SlimrankError(f"--steps is {self.steps}, --recover {self.recover}; at least 1 step, 0 epochs")
        self.cut.step(0, self.steps)
        if self.data is None and (self.max_drop is not None or self.steps > 1 or self.distill):
            raise SlimrankError("--max-drop, --steps and --distill need images; add --data")
        if self.head not in HEADS:
            raise SlimrankError(f"no head {self.head!r}; {near(self.head, HEADS)}")
        self.subspaces.check()
        if self.select == BY_GATES:
            raise SlimrankError("--select gates is for specialize: compress moves the weights that gates were trained with")
        if self.data is None and record.split is not None:
            raise SlimrankError(f"ranker {self.ranker} needs images; add --data, or take one of {', '.join(DATA_FREE)}")
        if self.data is None and (self.rivals or self.head in ("gather", "tiled", "int8")):
            raise SlimrankError("--rivals and --head gather, tiled or int8 need images; add --data")
        self.recipe(max(1, self.epochs) if self.epochs >= 0 else self.epochs, self.lr).check()


def typed(value: object) -> str:
    """An option's value as it is given on the command line."""
    return "its default" if value is None else ",".join(map(str, value)) if isinstance(value, list) else repr(value)
