"""FilterScores, what every ranker returns: one number a unit, higher = keep, with its provenance."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import SlimrankError
from ...files import read_json, write_json
from ..channels.groups import ChannelMap


@dataclass(frozen=True)
class FilterScores:
    """`scores[layer]`: one float a unit of the group named after that layer, in the layer's order.

    `ties[layer]`: a second number a unit, which decides between equal scores (then the lower index is the lesser).
    `comparable`: scores of different layers are in one unit (accuracy); else only their order within a layer means something.
    `estimated` is False when the score is exact on the images given; `evaluations` counts network evaluations, each over
    all images. `extra`: what only this ranker tells (class-wise CAR, confidence, ...); it stands beside the rest in JSON.
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
    extra: dict[str, Any] = field(default_factory=dict)
    comparable: bool = False

    def order(self, layer: str) -> list[int]:
        """The units of a layer, least important first."""
        score = torch.tensor(self.scores[layer], dtype=torch.float64)
        tie = torch.tensor(self.ties.get(layer, [0.0] * len(score)), dtype=torch.float64)
        second = torch.argsort(tie, stable=True)
        return second[torch.argsort(score[second], stable=True)].tolist()

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        extra = fields.pop("extra")
        return {**fields, **extra}

    @classmethod
    def flat(cls, ranker: str, channels: ChannelMap) -> "FilterScores":
        """Equal scores everywhere."""
        return cls(ranker, {g.name: [1.0] * g.units for g in channels.groups if g.prunable})

    def save(self, path: str | Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "FilterScores":
        value = read_json(path, "scores file")
        fields = {k: v for k, v in value.items() if k in cls.__dataclass_fields__ and k != "extra"}
        try:
            made = cls(**fields, extra={k: v for k, v in value.items() if k not in fields})
            for name, layer in made.scores.items():
                ties = made.ties.get(name, [0.0] * len(layer))
                if len(ties) != len(layer):
                    raise ValueError("ties")
                if not all(isinstance(number, (int, float)) for number in [*layer, *ties]):
                    raise TypeError("numbers")
            if not isinstance(made.ranker, str) or not isinstance(made.comparable, bool):
                raise TypeError("ranker")
        except (TypeError, ValueError, AttributeError) as error:
            raise SlimrankError(f"scores file {path} is not one that `slimrank rank` writes; make it again") from error
        numbers = [number for layer in (*made.scores.values(), *made.ties.values()) for number in layer]
        if not all(map(math.isfinite, numbers)):
            raise SlimrankError(f"scores file {path} holds NaN or infinite scores; rank again")
        return made

    def __str__(self) -> str:
        how = "estimated, " if self.estimated else ""
        rows = [f"{self.ranker}: {how}{self.images} images, {self.evaluations} evaluations, {self.seconds:.1f} s"]
        rows.append(f"  {'layer':32} filters   lowest   median  highest  best five")
        for name, scores in self.scores.items():
            s = torch.tensor(scores, dtype=torch.float64)
            best = self.order(name)[::-1][:5]
            rows.append(f"  {name:32} {len(s):7} {s.min():8.3g} {s.median():8.3g} {s.max():8.3g}  {best}")
        return "\n".join(rows + [f"  note: {note}" for note in self.extra.get("notes", [])])
