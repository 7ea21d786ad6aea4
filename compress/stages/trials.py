"""The trials of `max_drop`, remembered: accuracies of all, networks of those that may still be taken."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from ...errors import SlimrankError
from ...files import read_json, write_json, write_text
from ..network.checkpoint import Checkpoint, load, save
from ..pruning.plan import PruningPlan
from ..training.result import Training
from .place import Place

REMEDY = "remove it, and its trials are run again"


@dataclass(frozen=True)
class _Record:
    """Beside the network of a trial: how it was cut and trained."""

    plan: PruningPlan
    training: Training | None


class Trials:
    """Trials by the share of the MACs that they keep: in memory, and in a place where there is one."""

    def __init__(self, place: Place | None, given: Checkpoint):
        """Raises SlimrankError for a trials.json that holds anything but accuracies."""
        self.place, self.given = place, given
        self.networks: dict[float, tuple[PruningPlan, nn.Module, Training | None]] = {}
        self.known: dict[str, Any] = {}
        if place is not None and place.at("trials.json").exists():
            path = place.at("trials.json")
            self.known = read_json(path, "the trials in", REMEDY)
            if not all(isinstance(top1, float) and 0 <= top1 <= 1 for top1 in self.known.values()):
                raise SlimrankError(f"{path} is damaged; {REMEDY}")

    def top1(self, macs: float) -> float | None:
        return self.known.get(str(macs))

    def forget(self, macs: float) -> None:
        self.known.pop(str(macs), None)

    def keep(self, macs: float, top1: float, plan: PruningPlan, model: nn.Module, training: Training | None) -> None:
        """Remember a trial; its network is on disk before its accuracy is, so that what is known can be taken."""
        self.networks[macs] = plan, model, training
        self.known[str(macs)] = top1
        if self.place is not None:
            save(self.given.then(model, step=f"trial at {macs} of the MACs"), self._path(macs))
            record = msgspec.json.encode(_Record(plan, training)).decode()
            write_text(self._path(macs).with_suffix(".json"), record)
            write_json(self.place.at("trials.json"), self.known)

    def holds(self, macs: float) -> bool:
        """Whether the network of a trial is at hand."""
        return macs in self.networks or (self.place is not None and self._path(macs).exists())

    def network(self, macs: float) -> tuple[PruningPlan, nn.Module, Training | None]:
        """Plan, network and training of a trial that `holds`."""
        if macs not in self.networks:
            path = self._path(macs)
            try:
                record = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=_Record)
            except (OSError, msgspec.MsgspecError, RecursionError) as error:
                raise SlimrankError(
                    f"{path.with_suffix('.json')} is damaged; remove {path}, and its trial is run again"
                ) from error
            self.networks[macs] = record.plan, load(path, model=self.given.name).model, record.training
        return self.networks[macs]

    def _path(self, macs: float) -> Path:
        assert self.place is not None
        return self.place.at(f"trial-{macs}.safetensors")
