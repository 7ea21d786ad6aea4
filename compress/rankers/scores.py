"""FilterScores, what every ranker returns: one number a unit, higher = keep, with its provenance."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError
from ...files import read_as, read_json, write_json
from ..channels.groups import ChannelMap

LARGEST = 2**30  # bytes of a scores file: one number a filter and class
Curve = list[list[float]]  # [share removed, units removed, top-1 or error] for each point


@dataclass(frozen=True, kw_only=True)
class FilterScores:
    """Scores of the filters of some layers, higher = keep. Two rankers' files can be compared, and either pruned by.

    `scores[layer]`: one float a unit of the group named after that layer, in the layer's order. `ties[layer]`: a second
    number a unit, which decides between equal scores (then the lower index is the lesser). `comparable`: scores of different
    layers are in one unit (accuracy); else only their order within a layer means something. `estimated` is False when the
    scores are exact on the images given; `evaluations` counts network evaluations, each over all images.

    `car_by_class[layer][unit][class]`: CAR on the images of one class, None where it has none (rankers/car.py).
    `sensitivity[layer]`: rankers/sensitivity.py. `error[layer]`: rankers/reconstruct.py. `extra`: further figures of one
    ranker, for people; JSON holds them beside the rest. `notes`, `car_by_class`, `sensitivity` and `error` are left out of
    JSON where they are None.
    """

    ranker: str
    scores: dict[str, list[float]]
    estimated: bool = False
    evaluations: int = 0
    seconds: float = 0.0
    images: int = 0
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ties: dict[str, list[float]] = field(default_factory=dict)
    comparable: bool = False
    car_by_class: dict[str, list[list[float | None]]] | None = None
    sensitivity: dict[str, Curve] | None = None
    error: dict[str, Curve] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] | None = None

    def order(self, layer: str) -> list[int]:
        """The units of a layer, least important first."""
        return least_first(self.scores[layer], self.ties.get(layer))

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        extra, notes = fields.pop("extra"), fields.pop("notes")
        for optional in ("car_by_class", "sensitivity", "error"):
            if fields[optional] is None:
                del fields[optional]
        return {**fields, **extra, **({} if notes is None else {"notes": notes})}

    @classmethod
    def flat(cls, ranker: str, channels: ChannelMap) -> "FilterScores":
        """Equal scores everywhere, for `channels`' groups that can be pruned."""
        return cls(ranker=ranker, scores={g.name: [1.0] * g.units for g in channels.groups if g.prunable})

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "FilterScores":
        """Read a scores file. Raises SlimrankError where `save` did not write it, or a score is not finite."""
        value = read_json(path, "scores file", largest=LARGEST)
        fields = {k: v for k, v in value.items() if k in cls.__dataclass_fields__ and k != "extra"}
        extra = {k: v for k, v in value.items() if k not in fields}
        loaded = read_as(cls, {**fields, "extra": extra}, f"scores file {path} is not one that `slimrank rank` writes")
        curves = [*(loaded.sensitivity or {}).values(), *(loaded.error or {}).values()]
        if any(len(layer) != len(loaded.scores.get(name, ())) for name, layer in loaded.ties.items()):
            raise SlimrankError(
                f"scores file {path} is not one that `slimrank rank` writes (ties of other filters); make it again"
            )
        if any(len(point) != 3 for curve in curves for point in curve):
            raise SlimrankError(f"scores file {path} is not one that `slimrank rank` writes (a curve's points); make it again")
        layers = (*loaded.scores.values(), *loaded.ties.values(), *(point for curve in curves for point in curve))
        if not all(math.isfinite(number) for layer in layers for number in layer):
            raise SlimrankError(f"scores file {path} holds NaN or infinite scores; rank again")
        return loaded

    def __str__(self) -> str:
        how = "estimated, " if self.estimated else ""
        rows = [f"{self.ranker}: {how}{self.images} images, {self.evaluations} evaluations, {self.seconds:.1f} s"]
        rows.append(f"  {'layer':32} filters   lowest   median  highest  best five")
        for name, scores in self.scores.items():
            s = torch.tensor(scores, dtype=torch.float64)
            best = self.order(name)[::-1][:5]
            rows.append(f"  {name:32} {len(s):7} {s.min():8.3g} {s.median():8.3g} {s.max():8.3g}  {best}")
        return "\n".join(rows + [f"  note: {note}" for note in self.notes or []])


def least_first(scores: list[float], ties: list[float] | None = None) -> list[int]:
    """Positions of the scores, rising; equal ones by `ties`, then by position."""
    first = torch.tensor(scores, dtype=torch.float64)
    by_tie = torch.argsort(torch.tensor(ties or [0.0] * len(scores), dtype=torch.float64), stable=True)
    order: list[int] = by_tie[torch.argsort(first[by_tie], stable=True)].tolist()
    return order
