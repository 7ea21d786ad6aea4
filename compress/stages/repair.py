"""Repair a network that was cut: by reconstruction, or by BatchNorm's statistics alone; and say what each of them brings."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...evaluate.accuracy import predictor
from ...evaluate.data import Data, Images
from ...processes import alone
from ..channels.groups import ChannelMap
from ..network.device import on
from ..pruning.plan import PruningPlan
from ..pruning.reconstruct import HELD_OUT, Reconstruction, reconstruct, traceable
from ..training.recalibrate import has_statistics, recalibrate
from .measure import Decided, agreement, decided
from .options import PruneOptions

CHUNK = 100  # images that pass both networks at once
AS_CUT, RECALIBRATED, RECONSTRUCTED = "as_cut", "recalibrated", "reconstructed"
NAMES = {AS_CUT: "as cut", RECALIBRATED: "BatchNorm recalibrated", RECONSTRUCTED: "reconstructed"}


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A network after a cut: the ways it was repaired, by name, and the one that was `taken`; `note`: why, where it is not the
    usual one. Without images there is but one way, as cut."""

    plan: PruningPlan
    ways: dict[str, nn.Module]
    taken: str
    images: int = 0
    reconstruction: Reconstruction | None = None
    note: str = ""

    @property
    def model(self) -> nn.Module:
        return self.ways[self.taken]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one network on test images; `top1` None where they have no labels."""

    top1: float | None
    agreement: float

    def __str__(self) -> str:
        return f"{self.agreement:.1%}" if self.top1 is None else f"{self.top1:.4f}"


@dataclass(frozen=True, kw_only=True)
class RepairFigures:
    """The same cut three ways, on test images, before anything is trained; None: it was not repaired that way. `taken`: what
    the result is."""

    as_cut: Figures
    recalibrated: Figures | None
    reconstructed: Figures | None
    taken: str
    images: int
    seconds: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """Each way's figure but the taken one's, which whoever prints this has told, and how that was made."""
        ways = {AS_CUT: self.as_cut, RECALIBRATED: self.recalibrated, RECONSTRUCTED: self.reconstructed}
        others = [f"{NAMES[way]} {figure}" for way, figure in ways.items() if figure is not None and way != self.taken]
        made = {
            AS_CUT: "left as cut",
            RECALIBRATED: f"BatchNorm recalibrated on {self.images:,} images",
            RECONSTRUCTED: f"reconstructed from {self.images:,} images in {self.seconds:.0f} s",
        }
        return "; ".join([*([", ".join(others)] if others else []), made[self.taken], *([self.note] if self.note else [])])


def calibration(data: Data, options: PruneOptions) -> Images:
    """The training images that a cut is repaired on; their labels are not read."""
    return data.split("train").sample(options.calibration_images, options.seed)


def repair(
    dense: nn.Module, channels: ChannelMap, plan: PruningPlan, as_cut: nn.Module, data: Data | None, options: PruneOptions
) -> Repaired:
    """Repair a cut as the options say; what they leave open is chosen by the error of the logits on held-out images.

    `as_cut`: `dense` without what `plan` drops. Raises SlimrankError as `reconstruct` does.
    """
    ways, notes = {AS_CUT: as_cut}, []
    if data is None:
        return Repaired(plan=plan, ways=ways, taken=AS_CUT)
    images, done = calibration(data, options), None
    if options.recalibrate is not False and has_statistics(as_cut):
        ways[RECALIBRATED] = recalibrated(as_cut, data, options)
    reason = traceable(dense) if options.reconstruct is None else ""
    if reason:
        notes.append(f"not reconstructed: torch.fx cannot follow forward() ({reason})")
    if options.reconstruct is not False and not reason:
        done = reconstruct(
            dense, as_cut, channels, channels.removed(plan.keep), images.batches(CHUNK, device=options.device),
            memory=options.memory, seed=options.seed, device=options.device,
        )  # fmt: skip
        ways[RECONSTRUCTED] = recalibrated(done.model, data, options) if options.recalibrate else done.model
        notes += [done.note] if done.note else []
    taken = list(ways)[-1]
    if not (options.recalibrate or options.reconstruct) and len(ways) > 1:
        errors = alone(lambda: logit_errors(dense, ways, held_out(images), options.device))
        usual, taken = taken, min(errors, key=lambda way: errors[way])
        if taken != usual:
            notes.append(
                f"{NAMES[usual]} it would be further from the dense network's logits on held-out images "
                f"(error {errors[usual]:.2g} of their squares, {NAMES[taken]} {errors[taken]:.2g})"
            )
    return Repaired(
        plan=plan, ways=ways, taken=taken, images=len(images), reconstruction=done, note="; ".join(notes)
    )  # fmt: skip


def recalibrated(model: nn.Module, data: Data, options: PruneOptions) -> nn.Module:
    """Copy a network with BatchNorm's statistics taken anew on the calibration images."""
    with on(options.device, model):
        copy = recalibrate(model, calibration(data, options).batches(device=options.device))
    return copy.to("cpu")


def held_out(images: Images) -> Images:
    """The images among them that no layer was fitted on."""
    return images.subset(torch.arange(0, len(images), HELD_OUT))


def logit_errors(dense: nn.Module, ways: dict[str, nn.Module], images: Images, device: str = "cpu") -> dict[str, float]:
    """Squared error of each way's logits, as a share of the dense network's squares; what is common to all classes of an image
    does not count in either, since it decides nothing."""
    wanted = _centred(dense, images, device)
    scale = wanted.square().sum().clamp(min=1e-30)
    return {way: float((_centred(model, images, device) - wanted).square().sum() / scale) for way, model in ways.items()}


def _centred(model: nn.Module, images: Images, device: str) -> Tensor:
    with on(device, model):
        predict = predictor(model)
        logits = torch.cat([predict(x).cpu() for x, _ in images.batches(CHUNK, device=device)]).double()
    return logits - logits.mean(1, keepdim=True)


def figures(dense: Decided, repaired: Repaired, final: Decided, data: Data, options: PruneOptions) -> RepairFigures | None:
    """Measure the cut network each way beside the repaired one's decisions; None where nothing was repaired."""
    if len(repaired.ways) == 1:
        return None
    measured = {}
    for way, model in repaired.ways.items():
        found = final if way == repaired.taken else decided(model, data, device=options.device)
        measured[way] = Figures(top1=found.top1, agreement=agreement(dense, found))
    done = repaired.reconstruction
    return RepairFigures(
        as_cut=measured[AS_CUT], recalibrated=measured.get(RECALIBRATED), reconstructed=measured.get(RECONSTRUCTED),
        taken=repaired.taken, images=repaired.images, seconds=0.0 if done is None else done.seconds, note=repaired.note,
    )  # fmt: skip
