"""Classification accuracy reduction, CAR (Abbasi-Asl & Yu, "Structural compression of convolutional neural networks").

CAR of a filter: accuracy of the network less its accuracy without the filter. Greedy, the paper's algorithm: remove the
filter with the smallest CAR, recompute all, repeat. One-shot: all filters once, from the whole network.
"""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..coalitions.game import Coalitions
from . import CarOptions
from .scores import FilterScores


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    options: CarOptions = CarOptions(),  # noqa: B008
) -> FilterScores:
    """Score of a unit: its CAR; between equals the summed log-likelihood that its removal costs (`ties`), then the index.

    `batches`: images neither trained nor tested on, read once for each layer. `car_by_class[layer][unit]`: the same
    difference on the images of each class (None where it has no images); weighted by the classes' shares they sum to CAR.
    Exact on these images; evaluations: n a layer, and one for the whole network.

    `greedy`: removes `remove` units of each layer (default, and at most: all but one). Score: the accuracy lost once this unit
    and all before it are gone (never less than that of one removed earlier), so that layers compare; `ties`: the order.
    Those that are left follow by what their own removal would cost next. `removed[layer]`: [unit, correct images left] in
    order; evaluations: K n - K (K-1) / 2, one for the whole and n - K for those left. Candidates are dropped as soon as
    they cannot win; the order is brute force's.
    """
    start = time.perf_counter()
    if options.remove is not None and not options.greedy:
        raise SlimrankError(f"`remove` {options.remove} means something only with `greedy`; add it, or leave `remove` out")
    names = channels.chosen(layers, features=True)
    scores, ties = {}, {}
    extra: dict[str, Any] = {"car_by_class": {}, "removed": {}, "image_passes": 0, "notes": []}
    evaluations = images = 0
    absent: list[int] = []
    for name in tqdm(names, desc="car", leave=False, disable=None):
        game = Coalitions(model, channels, name, batches, classes=classes, memory=options.memory, hard_first=options.greedy)
        fixed = channels.group(name).fixed if name != channels.classifier else ()
        if options.greedy:
            whole = int(game.play(torch.ones(1, game.n)).correct)
            order = backward(game, game.n - 1 if options.remove is None else options.remove, fixed)
            left = order + last(game, [unit for unit, _ in order])
            worst, scores[name], ties[name] = -1.0, [0.0] * game.n, [0.0] * game.n
            for place, (unit, correct) in enumerate(left):
                worst = max(worst, (whole - correct) / game.images)
                scores[name][unit], ties[name][unit] = worst, float(place)
            extra["removed"][name] = [list(step) for step in order]
        else:
            car, by_class, lost = one_shot(game)
            scores[name], ties[name], extra["car_by_class"][name] = car, lost, by_class
        evaluations, images = evaluations + game.evaluations, game.images
        extra["image_passes"] += game.passes
        extra["notes"] += game.notes
        absent = (game.class_images == 0).nonzero().flatten().tolist()
    settings: dict[str, Any] = {"greedy": options.greedy, "remove": options.remove}
    if absent and not options.greedy:
        few = ", ".join(map(str, absent[:5])) + (", ..." if len(absent) > 5 else "")
        extra["notes"].append(f"no images of {len(absent)} classes ({few}): their car_by_class is null; raise `limit`")
    extra = {k: v for k, v in extra.items() if v}
    seconds = time.perf_counter() - start
    return FilterScores("car", scores, False, evaluations, seconds, images, None, settings, ties, extra, True)


def one_shot(game: Coalitions) -> tuple[list[float], list[list[float | None]], list[float]]:
    """CAR of each unit, CAR by class [units][classes], and the log-likelihood that its removal costs."""
    everyone = torch.ones(game.n, dtype=torch.bool)
    whole = game.play(everyone[None], likelihood=True)
    less = game.without_each(everyone, list(range(game.n)), likelihood=True)
    assert whole.likelihood is not None
    assert less.likelihood is not None
    fewer = whole.by_class - less.by_class
    present = game.class_images.tolist()
    by_class = [[lost / n if n else None for lost, n in zip(row, present, strict=True)] for row in fewer.tolist()]
    car = [lost / game.images for lost in fewer.sum(1).tolist()]
    return car, by_class, (whole.likelihood - less.likelihood).tolist()


def backward(game: Coalitions, rounds: int, fixed: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Remove `rounds` units one by one, always the one whose removal leaves most images right.

    Ties go to the higher log-likelihood, then to the lower index. Returns the units with the correct images left, in order.
    Raises SlimrankError for no rounds at all, or a layer that cannot lose a unit.
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
        found = {leader: (floor, float(best.likelihood[0]))}
        guess[leader] = (-floor, -found[leader][1])
        if others:
            rest = game.without_each(present, others, likelihood=True, floor=floor)
            assert rest.likelihood is not None
            for i, unit in enumerate(others):
                reach, log = int(rest.reach[i]), float(rest.likelihood[i])
                guess[unit] = (-reach, -log)
                if not rest.dropped[i]:
                    found[unit] = (reach, log)
        winner = max(found, key=lambda unit: (*found[unit], -unit))
        order.append((winner, found[winner][0]))
        present[winner] = False
        alive.remove(winner)
    return order


def last(game: Coalitions, removed: list[int]) -> list[tuple[int, int]]:
    """The units that are left, with the correct images that each one's removal would leave, least needed first."""
    present = torch.ones(game.n, dtype=torch.bool)
    present[removed] = False
    units = present.nonzero().flatten().tolist()
    found = game.without_each(present, units, likelihood=True)
    assert found.likelihood is not None
    order = sorted(
        zip(found.correct.tolist(), found.likelihood.tolist(), units, strict=True), key=lambda f: (-f[0], -f[1], f[2])
    )
    return [(unit, correct) for correct, _, unit in order]
