"""Repair a network that was cut: by reconstruction, or by BatchNorm's statistics alone; and say what each of them brings."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ...evaluate.data import Data, Images
from ..channels.groups import ChannelMap
from ..network.device import on
from ..pruning.plan import PruningPlan
from ..pruning.reconstruct import Reconstruction, reconstruct, traceable
from ..training.recalibrate import recalibrate
from .measure import Decided, agreement, decided
from .options import PruneOptions

CHUNK = 100  # images that pass both networks at once


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A network after a cut. `reconstruction` None: not asked for, or not possible, for the reason in `why_not`."""

    plan: PruningPlan
    as_cut: nn.Module
    model: nn.Module
    reconstruction: Reconstruction | None = None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one network on test images; `top1` None where they have no labels."""

    top1: float | None
    agreement: float

    def __str__(self) -> str:
        return f"{self.agreement:.1%}" if self.top1 is None else f"{self.top1:.4f}"


@dataclass(frozen=True, kw_only=True)
class RepairFigures:
    """The same cut three ways, on test images, before anything is trained. `reconstructed` None: it was not."""

    as_cut: Figures
    recalibrated: Figures
    reconstructed: Figures | None
    images: int
    seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """What came before the figure that the last repair ends at, which whoever prints this has told, and that repair."""
        before = [f"as cut {self.as_cut}"]
        repaired = f"BatchNorm recalibrated on {self.images:,} images"
        if self.reconstructed is not None:
            before.append(f"BatchNorm recalibrated {self.recalibrated}")
            repaired = f"reconstructed from {self.images:,} images in {self.seconds:.0f} s"
        return "; ".join([", ".join(before), repaired, *([self.note] if self.note else [])])


def calibration(data: Data, options: PruneOptions) -> Images:
    """The training images that a cut is repaired on; their labels are not read."""
    return data.split("train").sample(options.calibration_images, options.seed)


def repair(
    dense: nn.Module, channels: ChannelMap, plan: PruningPlan, as_cut: nn.Module, data: Data | None, options: PruneOptions
) -> Repaired:
    """Repair a cut as the options say: where there are images, and nothing else is asked for, by reconstruction.

    `as_cut`: `dense` without what `plan` drops. Raises SlimrankError as `reconstruct` does.
    """
    if data is None:
        return Repaired(plan=plan, as_cut=as_cut, model=as_cut)
    model, done, why_not = as_cut, None, ""
    if options.reconstruct is None:
        reason = traceable(dense)
        why_not = f"not reconstructed: torch.fx cannot follow forward() ({reason})" if reason else ""
    if options.reconstruct is not False and not why_not:
        batches = calibration(data, options).batches(CHUNK, device=options.device)
        done = reconstruct(
            dense, as_cut, channels, channels.removed(plan.keep), batches,
            memory=options.memory, seed=options.seed, device=options.device,
        )  # fmt: skip
        model = done.model
    if options.recalibrate or (options.recalibrate is None and done is None):
        model = recalibrated(model, data, options)
    return Repaired(plan=plan, as_cut=as_cut, model=model, reconstruction=done, why_not=why_not)


def recalibrated(model: nn.Module, data: Data, options: PruneOptions) -> nn.Module:
    """Copy a network with BatchNorm's statistics taken anew on the calibration images."""
    with on(options.device, model):
        copy = recalibrate(model, calibration(data, options).batches(device=options.device))
    return copy.to("cpu")


def figures(dense: Decided, repaired: Repaired, final: Decided, data: Data, options: PruneOptions) -> RepairFigures | None:
    """Measure the cut network as it was cut and recalibrated, beside the repaired one's decisions; None where nothing was
    repaired."""
    if repaired.model is repaired.as_cut:
        return None

    def measured(found: Decided) -> Figures:
        return Figures(top1=found.top1, agreement=agreement(dense, found))

    done = repaired.reconstruction
    anew = final if done is None else decided(recalibrated(repaired.as_cut, data, options), data, device=options.device)
    return RepairFigures(
        as_cut=measured(decided(repaired.as_cut, data, device=options.device)), recalibrated=measured(anew),
        reconstructed=None if done is None else measured(final),
        images=len(calibration(data, options)) if done is None else done.images, seconds=0.0 if done is None else done.seconds,
        note=repaired.why_not if done is None else done.note,
    )  # fmt: skip
