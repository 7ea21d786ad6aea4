"""What the options leave open: the layout (by the clock), k2, how many groups are probed, how many classes rescored.

Everything is decided on the validation split.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear
from . import two_level
from .build import Extras, Problem, Shape, coarse_scores, fitted, laid_out, subspaces
from .classifier import Classifier, class_groups, kept_features, tile_for
from .cluster import Subspaces
from .fit import Trained, decisions, top1
from .install import folding
from .options import HeadOptions
from .timing import Race, candidates, fastest_first


@dataclass(frozen=True)
class Built:
    """A head of one shape, and what was found on the way to it."""

    head: SubspaceLinear
    spaces: Subspaces
    training: Trained | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """No layout is faster than the dense layer and accurate enough; the notes say what was tried."""

    notes: tuple[str, ...]


def by_the_clock(classifier: Classifier, options: HeadOptions) -> Race:
    """Time the shapes that `layout` auto tries against the dense layer; their weights do not matter to the clock."""
    features, classes = classifier.features, classifier.classes
    k2 = kept_features(features, "gather", options)
    tile = tile_for(features, options.tile, None if options.k2 is None else k2)
    free_order = folding(classifier, torch.arange(features).flip(0)) is not None
    shapes = candidates(
        features, classes, k2, tile, class_groups=options.groups, adjacent=options.adjacent, reorder=not free_order,
        rescore=options.rescore if isinstance(options.rescore, int) else min(8, classes), seed=options.seed,
        probe=options.probe if isinstance(options.probe, int) else 0,
        int8=options.any_layout and options.timing.providers == ("cpu",),
    )  # fmt: skip
    clock = options.timing
    return fastest_first(shapes, features, classes, clock.batch, clock.threads[0], clock.providers[0])


def search(problem: Problem, race: Race | None) -> Built | Refused:
    """The head that the options describe; without a `race` in the layout they name, else in the fastest that is accurate
    enough, else as a dense layer, or Refused where it must be faster than that."""
    classifier, options = problem.classifier, problem.options
    if race is None:
        groups = class_groups(classifier.classes, options) if options.layout == "tiled" else classifier.classes
        return built(problem, Shape(options.layout, groups, options.adjacent, options.probe))
    validation = problem.statistics.validation
    dense = top1(classifier.dense, validation)
    notes: tuple[str, ...] = ()
    for timed in race.faster:
        candidate = built(problem, Shape(timed.layout, timed.class_groups, timed.adjacent, timed.probe))
        reached = top1(candidate.head, validation)
        notes += candidate.notes
        if reached >= dense - options.drop:
            return replace(candidate, notes=(*notes, f"{timed}; validation top-1 {reached:.4f}, dense {dense:.4f}"))
        if timed is race.faster[-1]:
            notes += (
                f"faster than the dense layer: {len(race.faster)} of the layouts; within `max_drop` {options.drop} of its "
                f"validation top-1 {dense:.4f}: none ({timed.name}: {reached:.4f})",
            )
    if options.only_faster:
        return Refused(notes)
    fallback = built(problem, Shape("dense", classifier.classes))
    return replace(fallback, notes=(*notes, *fallback.notes))


def built(problem: Problem, shape: Shape) -> Built:
    """Build a head of one shape: k2, probing and rescoring found where they are left open."""
    options, validation = problem.options, problem.statistics.validation
    notes: list[str] = []
    if options.k2 == "auto" and shape.layout != INT8:
        k2 = smallest_k2(problem, shape)
        notes.append(f"k2 {k2} is the smallest within `max_drop` {options.drop} on validation")
    else:
        k2 = kept_features(problem.classifier.features, shape.layout, options)
    spaces = subspaces(problem, shape, k2)
    head, training = fitted(problem, spaces, shape.layout)
    complete = shape.layout in ("dense", INT8)
    if complete and options.rescore:
        notes.append(f"nothing rescored: the {shape.layout} layout computes every logit already")
    if complete or not (options.rescore or shape.probe):
        return Built(head, spaces, training, tuple(notes))
    extras = Extras()
    if shape.probe:
        coarse = coarse_scores(problem, spaces)
        probe, note = fewest_groups(problem, head, spaces, coarse) if shape.probe == "auto" else (int(shape.probe), "")
        extras = Extras(0, probe, coarse)
        notes += [note] if note else []
    rescore, note = (
        enough_rescored(problem, head, spaces, shape.layout, extras)
        if options.rescore == "auto"
        else (int(options.rescore), "")
    )
    notes += [note] if note else []
    final_head = laid_out(problem, head, spaces, shape.layout, replace(extras, rescore=rescore))
    if rescore:
        before = top1(laid_out(problem, head, spaces, shape.layout, extras), validation)
        after = top1(final_head, validation)
        if after < before:
            notes.append(
                f"rescoring brings the dense layer's decisions back, not better ones: top-1 {before:.4f} -> {after:.4f}"
            )
    return Built(final_head, spaces, training, tuple(notes))


def smallest_k2(problem: Problem, shape: Shape) -> int:
    """The smallest k2 whose validation top-1 stays within `max_drop` of the dense layer's, by bisection."""
    classifier, options, validation = problem.classifier, problem.options, problem.statistics.validation
    step = tile_for(classifier.features, options.tile, None) if shape.layout == "tiled" else 1
    floor = top1(classifier.dense, validation) - options.drop

    def holds(tiles: int) -> bool:
        head, _ = fitted(problem, subspaces(problem, shape, tiles * step), shape.layout)
        return top1(head, validation) >= floor

    return _first_that_holds(0, classifier.features // step, holds) * step


def fewest_groups(problem: Problem, head: SubspaceLinear, spaces: Subspaces, coarse: tuple[Tensor, Tensor]) -> tuple[int, str]:
    """The fewest groups of classes that hold the decision of all of them as often as `agreement` asks for, and a note.

    With rescoring the decision is the dense layer's, and half of the misses that are allowed are left to rescoring.
    """
    validation, options = problem.statistics.validation, problem.options
    wanted, allowed = decisions(head, validation), 1 - options.least_agreement
    if options.rescore:
        wanted, allowed = dense_decisions(problem), allowed / 2
    probe, held = two_level.fewest(coarse, spaces.rows(problem.classifier.classes), wanted, validation.x, 1 - allowed)
    whose = "the dense layer's" if options.rescore else "all groups'"
    return probe, f"{probe} of {len(spaces.index)} groups hold {held:.1%} of {whose} decisions on validation"


def enough_rescored(problem: Problem, head: SubspaceLinear, spaces: Subspaces, layout: str, extras: Extras) -> tuple[int, str]:
    """The fewest classes to rescore until decisions agree with the dense layer's as `agreement` asks for, and a note."""
    classes = most = problem.classifier.classes
    dense, agreement = dense_decisions(problem), problem.options.least_agreement
    if extras.probe:
        most = extras.probe * (classes // len(spaces.index))

    def holds(count: int) -> bool:
        rescored_head = laid_out(problem, head, spaces, layout, replace(extras, rescore=count))
        return float((decisions(rescored_head, problem.statistics.validation) == dense).double().mean()) >= agreement

    high = 1
    while high < most and not holds(high):
        high = min(most, 2 * high)
    high = _first_that_holds(high // 2, high, holds)
    if high == most < classes and not holds(high):
        return high, f"even all {most} classes of the probed groups do not reach {agreement:.1%} of the dense decisions"
    return high, f"{high} classes rescored for {agreement:.1%} of the dense decisions on validation"


def dense_decisions(problem: Problem) -> Tensor:
    """Classes that the dense layer decides on, [validation images]."""
    return F.linear(problem.statistics.validation.x, *problem.target).argmax(1)


def _first_that_holds(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least count above `low` that holds, by bisection; `high` is taken to."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
