"""What the stages are asked for, composed of what lies beside their parts. Free of torch: the parser reads it."""

import math
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from ...errors import SlimrankError, near
from ...evaluate.dataspec import needs_labels
from ...evaluate.imagespec import ImageSpec
from ...evaluate.timing import Timing
from ...option import nested, option
from ..coalitions import MEMORY
from ..pruning.options import Cut
from ..rankers import DEFAULT, NAMES, ranker
from ..training.recipe import Recipe

EXPECT = "exit with status 3 unless this holds, as {} (repeatable)"
ONE_IMAGE = Timing(batch=(1,))


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How `prune` cuts. `reconstruct` None: where there are images; `recalibrate` None: where nothing else is repaired.
    `recover`, `distill` and `training` belong to `steps` and `max_drop`; with `max_drop`, `training.epochs` are trained in
    every trial."""

    ranker: str | None = option(None, f"default {DEFAULT}; {NAMES}")
    cut: Cut = nested(Cut())
    timing: Timing | None = nested(ONE_IMAGE, unasked=True)
    training: Recipe = nested(Recipe(epochs=0, lr=0.02), without=("teacher_share",))
    reconstruct: bool | None = option(
        None,
        "repair what the cut has lost in closed form, on training images without their labels (default: where there is --data)",
    )
    recalibrate: bool | None = option(
        None, "BatchNorm's statistics anew, on training images (default: where there is --data and nothing is reconstructed)"
    )
    calibration_images: int = option(4000, "training images that a cut is repaired on, labels unread (default 4000)")
    memory: int = option(MEMORY, "bytes that reconstruction holds, files beyond (default 2 GiB)")
    steps: int = option(1, "rank, cut and recover so many times (default 1: one-shot)")
    recover: int = option(1, "epochs between steps (default 1)")
    distill: bool = option(False, "fine-tune with the input checkpoint as teacher")
    seed: int = option(0)
    device: str = option("cpu")

    @property
    def clock(self) -> Timing:
        return self.timing or ONE_IMAGE

    @property
    def long(self) -> bool:
        """Whether a kill would lose more than a cut: trials or steps that are trained."""
        return self.steps > 1 or self.cut.max_drop is not None

    def check(self, images: bool, scored: bool = False, labels: bool = True) -> "PruneOptions":
        """Raise SlimrankError for what contradicts itself.

        `images`: there are some; `scored`: scores are given; `labels`: the images have classes.
        """
        if self.timing is not None:
            if not self.cut.clocked:
                raise SlimrankError(
                    "`batch`, `threads` and `providers` say what `latency` and `timed` measure; add one, or leave them out"
                )
            self.timing.single("prune times at one `threads` and one `providers`; name one of each")
        self.cut.check(self.clock)
        record = ranker(self.ranker or DEFAULT)
        if self.steps < 1 or self.recover < 0:
            raise SlimrankError(f"`steps` is {self.steps}, `recover` {self.recover}; at least 1 step, 0 epochs")
        self.cut.step(0, self.steps)
        if not images and (self.cut.max_drop is not None or self.recalibrate or self.reconstruct):
            raise SlimrankError("`max_drop`, `recalibrate` and `reconstruct` need images; add `data`")
        if self.calibration_images < 2 or self.memory < 1:
            raise SlimrankError(
                f"`calibration_images` is {self.calibration_images}, `memory` {self.memory}; at least 2 images, 1 byte"
            )
        if not images and (self.steps > 1 or self.distill):
            raise SlimrankError("`max_drop`, `steps` and `distill` need images; add `data`")
        if not scored:
            record.check_data(images, labels)
        if images and not labels and self.cut.max_drop is not None:
            raise needs_labels("`max_drop`")
        if self.training.epochs and self.cut.max_drop is None:
            raise SlimrankError("`epochs` belongs to `max_drop` here; fine-tune the pruned checkpoint with `slimrank finetune`")
        replace(self.training, epochs=max(1, self.training.epochs) if self.training.epochs >= 0 else -1).check()
        return self

    def recipe(self, epochs: int) -> Recipe:
        return replace(self.training, epochs=epochs, seed=self.seed, device=self.device)


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """`ranker`'s own options stand in its record (rankers/__init__.py)."""

    ranker: str = option(MISSING, NAMES)
    layer: tuple[str, ...] | None = option(
        None, "only this layer's group (repeatable); the classifier: its features", repeat=True
    )


@dataclass(frozen=True, kw_only=True)
class SensitivityOptions:
    ranker: str | None = option(None, f"whose order filters go in (default {DEFAULT}); {NAMES}")
    error: bool = option(False, "the error that is left after repair, in the order of ranker reconstruct; needs no labels")
    layer: tuple[str, ...] | None = option(None, "only this layer's group (repeatable)", repeat=True)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    scores: tuple[Path, ...] = option((), "scores files of `rank`", positional="2")
    top: int = option(5, "how many best filters to compare (default 5)")


@dataclass(frozen=True, kw_only=True)
class ScoresOption:
    scores: Path | None = option(None, "scores file of `rank`, instead of --ranker")


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    timing: Timing = nested(ONE_IMAGE)
    time: bool = option(False, "time of every layer in ONNX Runtime, and what less of it would save")

    def check(self) -> "InspectOptions":
        if self.time:
            self.timing.check()
            if self.timing.providers != ("cpu",) or len(self.timing.threads) > 1:
                raise SlimrankError("layers are timed on the CPU provider at one thread count; leave out `providers`, give one")
        return self


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    timing: Timing = nested(Timing())
    split: str = option("test", choices=("train", "validation", "test"))
    against: Path | None = option(
        None, "also tell on how many of the images it decides as this checkpoint or .onnx file does; needs no labels",
        metavar="CKPT",
    )  # fmt: skip
    expect: tuple[str, ...] = option((), EXPECT.format("top1>=0.7"), repeat=True, metavar="FIGURE>=X")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    opset: int | None = option(None, "of ONNX's operators, 18 (ONNX Runtime 1.14) to 23 (default: the exporter's own)")
    tolerance: float = option(
        0.01, "largest difference of the float file from PyTorch, as a share of the logits' spread (default {default})"
    )
    int8: bool = option(False, "int8 where it is faster and accurate, calibrated on training images (needs --data)")
    fp16: bool = option(False, "float16 for --providers cuda; images and logits stay float32")
    max_drop: float | None = option(
        None,
        "with --int8: validation top-1 that it may lose (default 0.01: one point); without labels, share of decisions that it "
        "may change (default 0.05)",
    )
    timing: Timing | None = nested(ONE_IMAGE, unasked=True, only=("batch", "threads"))

    def check(self, images: bool = False) -> "ExportOptions":
        """Raise SlimrankError for an opset that is not written, a share that is none, and int8 without images."""
        from ...export.to_onnx import check_opset

        check_opset(self.opset)
        if not 0 <= self.tolerance < math.inf:
            raise SlimrankError(f"`tolerance` is {self.tolerance}, must be a share of the logits' spread, as 0.01")
        if self.int8 and self.fp16:
            raise SlimrankError("`int8` is for the CPU and `fp16` for the GPU; write two files")
        if not self.int8:
            if self.max_drop is not None or self.timing is not None:
                raise SlimrankError("`max_drop`, `batch` and `threads` say what `int8` is held to; add it, or leave them out")
            return self
        if not images:
            raise SlimrankError("`int8` is calibrated and judged on images; add `data`, labels are not needed")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise SlimrankError(f"`max_drop` is {self.max_drop}, must lie in 0..1; 0.01 is one point of top-1")
        self.clock.check().single("`int8` is timed at one `threads`; name one")
        return self

    @property
    def clock(self) -> Timing:
        return self.timing or ONE_IMAGE


@dataclass(frozen=True, kw_only=True)
class StartOption:
    start: Path | None = option(None, "start from this checkpoint", flag="--from", metavar="CKPT")


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    teacher: Path | None = option(None, "checkpoint to distil from")
    teacher_model: str | None = option(None, "its network, for a foreign checkpoint", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    timing: Timing = nested(Timing())
    models: tuple[Path, ...] = option((), ".onnx files; the first is what the others are compared with", positional="+")
    seconds: float = option(1.0, "time for each model and setting")
    images: ImageSpec = nested(ImageSpec())
    inputs: Path | None = option(None, "run these images: an .npz file of one array [n, ...]", metavar="FILE.npz")
    expect: tuple[str, ...] = option((), EXPECT.format("speedup>=1.5 or p95_ms<=12"), repeat=True, metavar="FIGURE>=X")
    profile: bool = option(False, "time of every operator, slowest first, at the first batch and thread count")
    tune: bool = option(False, "search threads, spinning and optimisation level at the first batch; prints code to paste")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    runs: tuple[Path, ...] = option((), "folders that `compress` wrote", positional="+", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes. Seed and device are fields of what uses them, too; what they are is said here."""

    json: bool = option(False, "the result as one JSON object on stdout")
    seed: int = option(0, "of splits, random scores and training (default 0)")
    device: str = option("cpu", "cpu or cuda, for PyTorch's part")
    debug: bool = option(False, "show tracebacks")

    def check(self) -> "Common":
        """Raise SlimrankError for a device that is not there, and a seed that PyTorch does not take."""
        import torch

        kind = self.device.split(":")[0]
        if kind not in ("cpu", "cuda"):
            raise SlimrankError(f"no device {self.device!r}; {near(self.device, ['cpu', 'cuda'])}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise SlimrankError("`device` cuda: PyTorch sees no CUDA device; leave `device` out, or check the driver")
        if not -(2**63) <= self.seed < 2**63:
            raise SlimrankError(f"`seed` is {self.seed}, must be an integer of 64 bits")
        return self


@dataclass(frozen=True, kw_only=True)
class SweepOption:
    sweep: tuple[int, ...] | None = option(
        None, "also histogram heads of every k1 and k2 of these (test top-1, truncated or refitted)", metavar="K,K"
    )
