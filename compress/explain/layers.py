"""Groups of filters: which are looked at, and what each of their filters does (CAR, colour, responses, concepts)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import SlimrankError
from ...evaluate.concepts.dissection import LayerDissection
from ..channels.groups import ChannelMap
from ..coalitions.activations import Relay
from ..coalitions.game import Coalitions
from ..network.checkpoint import Checkpoint
from ..rankers.car import ESTIMATED, LayerCar, one_shot
from ..rankers.scores import least_first
from .filters import ColourOrder, FilterSurvey, Redundancy, colour_order, kernel_colour, redundancy
from .responses import Responses

MOST_LAYERS = 4  # groups that are looked at unless others are named
MOST_CLASSES = 3  # that a filter serves or hinders


@dataclass(frozen=True, kw_only=True)
class UnitConcept:
    """The concept of the largest IoU (evaluate/concepts)."""

    name: str
    category: str
    iou: float


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """One filter. `serves`, `hinders`: [class, accuracy that it loses without the filter], the largest first; `response`:
    mean |activation|; `top_images`: numbers of the validation images that the filter answers to most."""

    car: float
    car_by_class: list[float | None]
    serves: list[tuple[str, float]]
    hinders: list[tuple[str, float]]
    colour: float | None
    response: float
    top_images: list[int]
    concept: UnitConcept | None = None

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        if self.concept is None:
            del fields["concept"]
        return fields


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One group of filters. `order`: units by CAR, least important first, of which the first `pruned` (a quarter) would go;
    `tied`: the layers of the group; `colour_rule`: how colour selectivity was measured."""

    filters: list[FilterReport]
    order: list[int]
    tied: list[str]
    pruned: int
    mean_colour: float | None
    colour_rule: str | None
    colour_under_car: ColourOrder | None
    redundancy: Redundancy

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "filters": [unit.to_dict() for unit in self.filters]}

    def with_concepts(self, dissection: LayerDissection) -> "LayerReport":
        """The same with each filter's concept."""
        filters = [
            replace(unit, concept=UnitConcept(name=name, category=category, iou=iou))
            for unit, (name, category, iou) in zip(self.filters, dissection.units, strict=True)
        ]
        return replace(self, filters=filters)


def choose_layers(checkpoint: Checkpoint, channels: ChannelMap, named: list[str] | None) -> tuple[list[str], list[str]]:
    """The groups to look at, and notes: those named, or the first, the last and some between that answer with maps (not 1x1).

    Raises SlimrankError for an unknown layer, and where no group answers with maps.
    """
    if named:
        return channels.chosen(named, masked=True), []
    model = checkpoint.model
    candidates = []
    for name in channels.chosen(None, masked=True):
        if isinstance(model.get_submodule(name), nn.Conv2d):
            try:
                maps = Responses(model, channels, [name])(checkpoint.example())[name]
            except SlimrankError:
                continue
            if maps.dim() == 4 and maps[0, 0].numel() > 1:
                candidates.append(name)
    if not candidates:
        raise SlimrankError("no conv layer of this network answers with maps and can be masked alone; see `slimrank inspect`")
    places = np.unique(np.linspace(0, len(candidates) - 1, min(MOST_LAYERS, len(candidates))).round().astype(int))
    left_out = f"{len(places)} of {len(candidates)} filter groups were looked at; name others with `layer`"
    return [candidates[i] for i in places], [left_out] if len(candidates) > MOST_LAYERS else []


def layers_car(
    model: nn.Module, channels: ChannelMap, batches: Iterable[tuple[Tensor, Tensor]], layers: list[str], classes: int
) -> tuple[dict[str, LayerCar], list[str]]:
    """One-shot CAR of each layer, and notes on how it was found."""
    scores: dict[str, LayerCar] = {}
    notes: list[str] = []
    relay = Relay()
    for name in tqdm(layers, desc="car", leave=False, disable=None):
        game = Coalitions(model, channels, name, batches, classes=classes, screened=True, relay=relay)
        scores[name] = one_shot(game)
        notes += game.notes
    return scores, [*notes, *([ESTIMATED] if any(layer.screened for layer in scores.values()) else [])]


def report_layer(
    name: str, car: LayerCar, survey: FilterSurvey, checkpoint: Checkpoint, channels: ChannelMap, classes: list[str]
) -> LayerReport:
    """Put together what is known of one group's filters. `classes`: names."""
    colour, rule = _colour(name, survey, checkpoint.model)
    order = least_first(car.car, car.ties)
    pruned = order[: max(1, len(order) // 4)]
    filters = []
    for unit in range(len(order)):
        losses = [(classes[c], loss) for c, loss in enumerate(car.by_class[unit]) if loss is not None]
        ranked = sorted(losses, key=lambda item: -item[1])
        filters.append(
            FilterReport(
                car=car.car[unit],
                car_by_class=car.by_class[unit],
                serves=[(c, round(loss, 4)) for c, loss in ranked[:MOST_CLASSES] if loss > 0],
                hinders=[(c, round(loss, 4)) for c, loss in ranked[::-1][:MOST_CLASSES] if loss < 0],
                colour=None if colour is None else round(float(colour[unit]), 4),
                response=float(survey.response[name][unit]),
                top_images=survey.top[name][unit].tolist(),
            )
        )
    return LayerReport(
        filters=filters,
        order=order,
        tied=list(channels.group(name).layers),
        pruned=len(pruned),
        mean_colour=None if colour is None else round(float(colour.mean()), 4),
        colour_rule=None if colour is None else rule,
        colour_under_car=None if colour is None else colour_order(colour.float(), order, len(pruned)),
        redundancy=redundancy(survey.correlation[name], pruned),
    )


def _colour(name: str, survey: FilterSurvey, model: nn.Module) -> tuple[Tensor | None, str]:
    """Colour selectivity of a layer's filters ([units], None for a network of grey images), and the rule that gave it."""
    if survey.colour is None:
        return None, ""
    module = model.get_submodule(name)
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    if name == first and isinstance(module, nn.Conv2d) and module.in_channels == 3:
        return kernel_colour(module.weight.detach().cpu()), "energy of the kernel that its mean over RGB does not explain"
    return survey.colour[name], "1 - response to grey / response to colour"
