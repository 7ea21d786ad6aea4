"""Shapley value of filters (Adamczewski & Park, "Neuron ranking - an informed way to condense CNNs").

The players are the filters of one layer, the worth v(C) of a coalition is the accuracy of the network with only the filters
of C, and a filter's value is its mean marginal worth v(C + i) - v(C): over all orders in which the filters can come (eq. 1),
or, the same, over sizes and then over coalitions of that size (eq. 2).

Where we deviate from the paper's text: v(empty) is the accuracy of the constant prediction that is left, not 0; and pairs of
subsets (eq. 2) are drawn by size first, since drawing uniformly over all subsets estimates the Banzhaf value instead.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from ...errors import SlimrankError, near
from ...processes import dealt
from ..channels.groups import ChannelMap
from ..coalitions.activations import Relay
from ..coalitions.game import Coalitions, Played
from ..coalitions.powerset import POWER_SET, power_set
from . import ShapleyOptions
from .scores import FilterScores

ESTIMATORS = ("exact", "truncated", "permutation", "subsets")
ENUMERATED = 12  # units up to which the power set is enumerated unless asked otherwise
SAMPLES = 10  # pairs of permutations, or pairs of subsets a filter, unless given
FEWEST = 5  # samples before a confidence interval is believed
Worth = Callable[[Tensor], Tensor]  # bool [coalitions, units] -> accuracy, float64 [coalitions]


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    options: ShapleyOptions,
) -> FilterScores:
    """Score of a unit: its Shapley value, layer by layer, the other layers whole.

    `batches`: images neither trained nor tested on. `estimator`: `exact` (the power set, up to 25 units), `truncated`
    (coalitions of fewer than `coalition_size` units, 2 by default), `permutation` (antithetic pairs) or `subsets` (eq. 2);
    by default exact for layers of up to 12 units, else, and wherever `samples` or `tolerance` are given, permutation.
    `samples`: at most that many pairs (10). `tolerance`: stop a layer when every unit's 95 % confidence interval is within +-
    this share of the images; `confidence[layer]` holds the half-widths (None after one sample, and for truncated, which is
    biased).

    Evaluations: 2^n; sum of C(n, s) for s <= coalition_size; 2 + 2 (n - 1) a pair of permutations; 2 + 2 n a round of subset
    pairs.
    `value_full`, `value_empty`: the worth of all filters and of none; their difference is the values' sum, but for
    truncated and subsets.
    """
    start = time.perf_counter()
    _check_options(options)
    samples = SAMPLES if options.samples is None else options.samples
    size = 2 if options.coalition_size is None else options.coalition_size
    relay = Relay()

    def of_layer(name: str) -> tuple[LayerValues, Played]:
        game = Coalitions(model, channels, name, batches, classes=classes, memory=options.memory, relay=relay)
        layer = _values(game, options, samples, size, torch.Generator().manual_seed(seed))
        if options.tolerance is not None and not float(layer.half_width.max()) <= options.tolerance:
            reached = f"{float(layer.half_width.max()):.3g} after {layer.samples} samples"
            game.notes.append(f"{name}: `tolerance` {options.tolerance} not reached, it is {reached}; raise `samples`")
        return layer, game.played

    names = channels.chosen(layers, features=True, masked=True)
    every = dealt(of_layer, names, "shapley")
    values = {name: layer for name, (layer, _) in zip(names, every, strict=True)}
    played = Played.sum(played for _, played in every)
    notes = list(played.notes)
    confidence = {
        name: [None if math.isnan(width) else width for width in layer.half_width.tolist()] for name, layer in values.items()
    }
    widest = max((width for row in confidence.values() for width in row if width), default=None)
    if widest is not None:
        notes.insert(0, f"95 % confidence intervals are within +-{widest:.3g}; `samples` or `tolerance` narrow them")
    return FilterScores(
        ranker="shapley", scores={name: layer.value.tolist() for name, layer in values.items()},
        estimated={layer.estimator for layer in values.values()} != {"exact"}, evaluations=played.evaluations,
        seconds=time.perf_counter() - start, images=played.images, seed=seed, comparable=True, notes=notes or None,
        options={
            "estimator": options.estimator, "samples": samples, "tolerance": options.tolerance, "coalition_size": size,
        },
        extra={
            "value_full": {name: layer.full for name, layer in values.items()},
            "value_empty": {name: layer.empty for name, layer in values.items()},
            "estimator": {name: layer.estimator for name, layer in values.items()},
            "confidence": confidence,
            "samples": {name: layer.samples for name, layer in values.items()},
            "image_passes": played.passes,
        },
    )  # fmt: skip


def _check_options(options: ShapleyOptions) -> None:
    if options.estimator is not None and options.estimator not in ESTIMATORS:
        raise SlimrankError(f"no estimator {options.estimator!r}; {near(options.estimator, ESTIMATORS)}")
    if options.estimator in ("exact", "truncated") and (options.samples, options.tolerance) != (None, None):
        raise SlimrankError(f"`samples` and `tolerance` say nothing to `estimator` {options.estimator}; leave them out")
    if options.estimator != "truncated" and options.coalition_size is not None:
        raise SlimrankError("`coalition_size` means something only with `estimator` truncated; add it, or leave the size out")
    if options.samples is not None and options.samples < 1:
        raise SlimrankError(f"`samples` is {options.samples}, must be at least 1")
    if options.tolerance is not None and not 0 < options.tolerance < 1:
        raise SlimrankError(f"`tolerance` is {options.tolerance}, must lie between 0 and 1; 0.01 is one point of accuracy")


@dataclass(frozen=True, kw_only=True)
class LayerValues:
    """Shapley values of a layer's units and their provenance. `value`, `half_width` of the 95 % confidence interval (NaN:
    unknown): float64 [units]; `empty`, `full`: the worth of no unit and of all; `samples`: draws taken."""

    value: Tensor
    half_width: Tensor
    samples: int
    empty: float
    full: float
    estimator: str


def _values(game: Coalitions, options: ShapleyOptions, samples: int, size: int, generator: torch.Generator) -> LayerValues:
    def worth(masks: Tensor) -> Tensor:
        return game.play(masks).correct.double() / game.images

    sampling = (options.samples, options.tolerance) != (None, None)
    estimator = options.estimator or ("exact" if game.n <= ENUMERATED and not sampling else "permutation")
    ends = torch.stack([torch.zeros(game.n), torch.ones(game.n)]).bool()
    used = 1
    if estimator == "exact":
        v = power_set(game).double() / game.images
        value, half_width = exact_values(v), torch.zeros(game.n)
        empty, full = float(v[0]), float(v[-1])
    elif estimator == "truncated":
        value, half_width = truncated_values(game.n, size, worth), torch.full((game.n,), torch.nan)
        empty, full = worth(ends).tolist()
    else:
        empty, full = worth(ends).tolist()
        draw = permutation_pairs if estimator == "permutation" else subset_pairs
        value, half_width, used = mean_of(draw(game.n, worth, empty, full, generator), samples, options.tolerance)
    return LayerValues(value=value, half_width=half_width, samples=used, empty=empty, full=full, estimator=estimator)


def exact_values(v: Tensor) -> Tensor:
    """Values from the worth of all 2^n coalitions (float64, bit i of the index is unit i): eq. 2, every coalition in it."""
    return by_size(v).mean(1)


def by_size(v: Tensor) -> Tensor:
    """Mean marginal worth of each unit over the coalitions of each size, float64 [units, sizes]."""
    n = len(v).bit_length() - 1
    size = torch.zeros(1, dtype=torch.int64)
    for _ in range(n - 1):  # members of each coalition of the other units
        size = torch.cat([size, size + 1])
    choices = torch.tensor([math.comb(n - 1, s) for s in range(n)], dtype=torch.float64)
    rows = []
    for unit in range(n):
        pairs = v.view(-1, 2, 2**unit)  # without the unit, with it
        marginal = (pairs[:, 1] - pairs[:, 0]).flatten()
        rows.append(torch.bincount(size, weights=marginal, minlength=n) / choices)
    return torch.stack(rows)


def truncated_values(n: int, k: int, worth: Worth) -> Tensor:
    """Coalitions of fewer than `k` units: the mean over sizes 0 to k-1 of the mean marginal worth."""
    k = min(k, n)
    total = sum(math.comb(n, s) for s in range(k + 1))
    if k < 1 or total > 2**POWER_SET:
        raise SlimrankError(
            f"`coalition_size` {k} of {n} filters needs {total:.1e} coalitions; it must be at least 1 and need at most "
            f"{2**POWER_SET:.1e}; 2 needs {1 + n + math.comb(n, 2):,}"
        )
    members = [c for s in range(k + 1) for c in combinations(range(n), s)]
    masks = torch.zeros(len(members), n, dtype=torch.bool)
    for row, chosen in enumerate(members):
        masks[row, list(chosen)] = True
    v = dict(zip(members, worth(masks).tolist(), strict=True))
    value = torch.zeros(n, dtype=torch.float64)
    for chosen in members[1:]:
        for i, unit in enumerate(chosen):
            marginal = v[chosen] - v[chosen[:i] + chosen[i + 1 :]]
            value[unit] += marginal / math.comb(n - 1, len(chosen) - 1) / k
    return value


def permutation_pairs(n: int, worth: Worth, empty: float, full: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Eq. 1, sampled: marginal worths along a permutation and along its reverse, averaged; their sum is full - empty."""
    while True:
        order = torch.randperm(n, generator=generator)
        pair = torch.zeros(n, dtype=torch.float64)
        for way in (order, order.flip(0)):
            arrived = torch.empty(n, dtype=torch.long)
            arrived[way] = torch.arange(n)
            masks = arrived[None, :] < torch.arange(1, n)[:, None]  # the first 1, 2, ... n-1 units
            v = torch.cat([torch.tensor([empty], dtype=torch.float64), worth(masks), torch.tensor([full], dtype=torch.float64)])
            pair[way] += (v[1:] - v[:-1]) / 2
        yield pair


def subset_pairs(n: int, worth: Worth, empty: float, full: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Eq. 2, sampled: for each unit a coalition of the others, its size drawn uniformly first, without and with the unit."""
    while True:
        masks = torch.zeros(2 * n, n, dtype=torch.bool)
        for unit in range(n):
            size = int(torch.randint(n, (1,), generator=generator))
            others = torch.randperm(n - 1, generator=generator)[:size]
            masks[2 * unit : 2 * unit + 2, others + (others >= unit)] = True
            masks[2 * unit + 1, unit] = True
        v = worth(masks)
        yield v[1::2] - v[::2]


def mean_of(draws: Iterator[Tensor], most: int, tolerance: float | None) -> tuple[Tensor, Tensor, int]:
    """Mean of independent draws, half-width of its 95 % confidence interval (normal), and how many were drawn.

    At most `most` are drawn; with `tolerance`, no more once the widest half-width is within it (but at least FEWEST).
    """
    seen: list[Tensor] = []
    while len(seen) < most:
        seen.append(next(draws))
        if len(seen) > 1:
            width = 1.96 * torch.stack(seen).std(0) / len(seen) ** 0.5
            if tolerance is not None and len(seen) >= FEWEST and float(width.max()) <= tolerance:
                break
    drawn = torch.stack(seen)
    width = 1.96 * drawn.std(0) / len(seen) ** 0.5 if len(seen) > 1 else torch.full((drawn.shape[1],), torch.nan)
    return drawn.mean(0), width, len(seen)
