"""Classification accuracy reduction, CAR (Abbasi-Asl & Yu, "Structural compression of convolutional neural networks").

The paper's index: CAR_i = accuracy of the network - accuracy of the network without filter i.
The paper's algorithm (greedy pruning): remove the filter of the smallest CAR, recompute all, repeat. Ours beside it
(one-shot): the CAR of every filter from the whole network, which needs n evaluations instead of about n^2 / 2.
The paper's class-wise variant: the same difference on the images of one class; it names the classes that a filter serves.

Where we deviate: accuracy has steps of one image, so equal CARs are common; the log-likelihood decides between them.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...processes import dealt
from ..channels.groups import ChannelMap
from ..coalitions.activations import Relay
from ..coalitions.game import Coalitions, Outcome, Played
from . import CarOptions
from .scores import FilterScores

ESTIMATED = "filters of equal CAR are in an order estimated in part in bfloat16; the counts are exact"


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    options: CarOptions,
) -> FilterScores:
    """Score of a unit: its CAR; between equals the summed log-likelihood that its removal costs (`ties`), then the index.

    `batches`: images neither trained nor tested on, read once, with `greedy` or little `memory` once for each layer.
    `car_by_class[layer][unit]`: CAR on the images of each class (None where it has no images); weighted by the classes' shares
    they sum to CAR. Exact on these images; evaluations: n a layer, and one for the whole network. Where the processor is fast
    in bfloat16, the log-likelihoods are in part estimated there (coalitions/screen.py), and a note says so: equals may then
    come in another order than elsewhere.

    `greedy`: removes `remove` units of each layer (default, and at most: all but one). Score: the accuracy lost once this unit
    and all before it are gone (never less than that of one removed earlier), so that layers compare; `ties`: the order.
    Those that are left follow by what their own removal would cost next. `removed[layer]`: [unit, correct images left] in
    order; evaluations: K n - K (K-1) / 2, one for the whole and n - K for those left. Candidates are dropped as soon as
    they cannot win; the order is brute force's.
    """
    start = time.perf_counter()
    if options.remove is not None and not options.greedy:
        raise SlimrankError(f"`remove` {options.remove} means something only with `greedy`; add it, or leave `remove` out")
    relay = Relay()

    def of_layer(name: str) -> tuple[LayerCar, Played, list[int]]:
        game = Coalitions(
            model, channels, name, batches, classes=classes, memory=options.memory, hard_first=options.greedy,
            screened=not options.greedy, relay=None if options.greedy else relay,
        )  # fmt: skip
        fixed = channels.group(name).fixed if name != channels.classifier else ()
        layer = _greedy(game, options.remove, fixed) if options.greedy else one_shot(game)
        return layer, game.played, (game.class_images == 0).nonzero().flatten().tolist()

    names = channels.chosen(layers, features=True, masked=True)
    every = dict(zip(names, dealt(of_layer, names, "car"), strict=True))
    played = Played.sum(played for _, played, _ in every.values())
    notes = list(played.notes)
    absent = [] if options.greedy else next((absent for _, _, absent in every.values()), [])
    if any(layer.screened for layer, _, _ in every.values()):
        notes.append(ESTIMATED)
    if absent:
        few = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        notes.append(f"no images of {len(absent)} classes ({few}): their car_by_class is null; raise `limit`")
    return FilterScores(
        ranker="car", scores={name: layer.car for name, (layer, _, _) in every.items()}, evaluations=played.evaluations,
        seconds=time.perf_counter() - start, images=played.images, comparable=True,
        options={"greedy": options.greedy, "remove": options.remove}, notes=notes or None,
        ties={name: layer.ties for name, (layer, _, _) in every.items()},
        car_by_class=None if options.greedy else {name: layer.by_class for name, (layer, _, _) in every.items()},
        extra={
            **({"removed": {name: layer.removed for name, (layer, _, _) in every.items()}} if options.greedy else {}),
            "image_passes": played.passes,
        },
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LayerCar:
    """CAR of a layer. `car` [units]; `ties` [units]: the log-likelihood that each removal costs, greedy the order. One-shot
    `by_class` [units][classes] (None for a class without images); greedy `removed`: [unit, correct images left] in order.
    `screened`: ties are estimates in part."""

    car: list[float]
    ties: list[float]
    by_class: list[list[float | None]] = field(default_factory=list)
    removed: list[list[int]] = field(default_factory=list)
    screened: bool = False


def one_shot(game: Coalitions) -> LayerCar:
    """CAR of every unit, from the whole network."""
    found = with_and_without(game)
    assert found.likelihood is not None
    lost = found.by_class[0] - found.by_class[1:]  # images, [units, classes]
    class_images = game.class_images.tolist()
    return LayerCar(
        car=[images / game.images for images in lost.sum(1).tolist()],
        by_class=[[images / n if n else None for images, n in zip(row, class_images, strict=True)] for row in lost.tolist()],
        ties=(found.likelihood[0] - found.likelihood[1:]).tolist(), screened=game.screen is not None,
    )  # fmt: skip


def with_and_without(game: Coalitions) -> Outcome:
    """Play the whole network first, then without each unit in turn; log-likelihoods too."""
    everyone = torch.ones(game.n, dtype=torch.bool)
    masks = torch.cat([everyone[None], ~torch.eye(game.n, dtype=torch.bool)])
    return game.play(masks, base=everyone, likelihood=True)


def _greedy(game: Coalitions, remove: int | None, fixed: tuple[int, ...]) -> LayerCar:
    """CAR of every unit once it and all before it are gone."""
    whole = int(game.play(torch.ones(1, game.n)).correct)
    order = backward(game, game.n - 1 if remove is None else remove, fixed)
    scores, ties, worst = [0.0] * game.n, [0.0] * game.n, -1.0
    for place, (unit, correct) in enumerate(order + last(game, [unit for unit, _ in order])):
        worst = max(worst, (whole - correct) / game.images)
        scores[unit], ties[unit] = worst, float(place)
    return LayerCar(car=scores, ties=ties, removed=[list(step) for step in order])


def backward(game: Coalitions, rounds: int, fixed: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Remove `rounds` units one by one, always the one whose removal leaves most images correct (the paper's algorithm).

    Exactly the order of brute force: a candidate is dropped once it cannot reach the best of its round so far. Ties go to the
    higher log-likelihood, then to the lower index. Returns the units with the correct images left, in order. Raises
    SlimrankError for no rounds at all, or a layer that cannot lose a unit.
    """
    most = game.n - max(1, len(fixed))
    rounds = min(rounds, most)
    if rounds < 1:
        raise SlimrankError(f"`remove` must be at least 1 and leave one filter; this layer can lose {most}")
    present = torch.ones(game.n, dtype=torch.bool)
    alive = [unit for unit in range(game.n) if unit not in fixed]
    guess: dict[int, tuple[int, float]] = dict.fromkeys(range(game.n), (0, 0.0))  # the lower, the likelier to go next
    order: list[tuple[int, int]] = []
    for _ in range(rounds):
        alive.sort(key=lambda unit: (guess[unit], unit))  # the likely winner first: it sets the floor for the others
        leader, others = alive[0], alive[1:]
        best = game.without_each(present, [leader], likelihood=True)
        assert best.likelihood is not None
        floor = int(best.correct[0])
        candidates = {leader: (floor, float(best.likelihood[0]))}  # correct images and log-likelihood without the unit
        guess[leader] = (-floor, -candidates[leader][1])
        if others:
            rest = game.without_each(present, others, likelihood=True, floor=floor)
            assert rest.likelihood is not None
            for i, unit in enumerate(others):
                reach, likelihood = int(rest.reach[i]), float(rest.likelihood[i])
                guess[unit] = (-reach, -likelihood)
                if not rest.dropped[i]:
                    candidates[unit] = (reach, likelihood)
        winner = max(candidates, key=lambda unit: (*candidates[unit], -unit))
        order.append((winner, candidates[winner][0]))
        present[winner] = False
        alive.remove(winner)
    return order


def last(game: Coalitions, removed: list[int]) -> list[tuple[int, int]]:
    """The units that are left, with the correct images that each one's removal would leave, least needed first."""
    present = torch.ones(game.n, dtype=torch.bool)
    present[removed] = False
    units = present.nonzero().flatten().tolist()
    without = game.without_each(present, units, likelihood=True)
    assert without.likelihood is not None
    order = sorted(
        zip(without.correct.tolist(), without.likelihood.tolist(), units, strict=True),
        key=lambda row: (-row[0], -row[1], row[2]),
    )
    return [(unit, correct) for correct, _, unit in order]
