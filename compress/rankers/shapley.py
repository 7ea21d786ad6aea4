"""Shapley value of filters (Adamczewski & Park, "Neuron ranking - an informed way to condense CNNs").

The players are the filters of one layer, the worth v(C) of a coalition is the accuracy of the network with only the filters
of C, and a filter's value is its mean marginal worth v(C + i) - v(C): over all orders in which the filters can come (eq. 1),
or, the same, over sizes and then over coalitions of that size (eq. 2).

Where we deviate from the paper's text: v(empty) is the accuracy of the constant prediction that is left, not 0; and pairs of
subsets (eq. 2) are drawn by size first, since drawing uniformly over all subsets estimates the Banzhaf value instead.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import SlimrankError, near
from ..channels.groups import ChannelMap
from ..coalitions.game import Coalitions
from ..coalitions.powerset import POWER_SET, power_set
from . import ShapleyOptions
from .scores import FilterScores

ESTIMATORS = ("exact", "truncated", "permutation", "subsets")
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
    options: ShapleyOptions = ShapleyOptions(),  # noqa: B008
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
    if options.estimator is not None and options.estimator not in ESTIMATORS:
        raise SlimrankError(f"no estimator {options.estimator!r}; {near(options.estimator, ESTIMATORS)}")
    if options.estimator in ("exact", "truncated") and (options.samples, options.tolerance) != (None, None):
        raise SlimrankError(f"`samples` and `tolerance` say nothing to `estimator` {options.estimator}; leave them out")
    if options.estimator != "truncated" and options.coalition_size is not None:
        raise SlimrankError("`coalition_size` means something only with `estimator` truncated; add it, or leave the size out")
    sampling = (options.samples, options.tolerance) != (None, None)
    samples = SAMPLES if options.samples is None else options.samples
    size = 2 if options.coalition_size is None else options.coalition_size
    if samples < 1:
        raise SlimrankError(f"`samples` is {samples}, must be at least 1")
    if options.tolerance is not None and not 0 < options.tolerance < 1:
        raise SlimrankError(f"`tolerance` is {options.tolerance}, must lie between 0 and 1; 0.01 is one point of accuracy")
    generator = torch.Generator().manual_seed(seed)
    scores: dict[str, list[float]] = {}
    extra: dict[str, Any] = {k: {} for k in ("value_full", "value_empty", "estimator", "confidence", "samples")}
    extra["notes"] = []
    evaluations = images = passes = 0
    for name in tqdm(channels.chosen(layers, features=True), desc="shapley", leave=False, disable=None):
        game = Coalitions(model, channels, name, batches, classes=classes, memory=options.memory)
        extra["notes"] += game.notes
        way = options.estimator or ("exact" if game.n <= 12 and not sampling else "permutation")
        ends = torch.stack([torch.zeros(game.n), torch.ones(game.n)]).bool()

        def worth(masks: Tensor, game: Coalitions = game) -> Tensor:
            return game.play(masks).correct.double() / game.images

        if way == "exact":
            v = power_set(game).double() / game.images
            value, width, used = exact(v), torch.zeros(game.n), 1
            empty, full = v[0], v[-1]
        elif way == "truncated":
            value, width, used = truncated(game.n, size, worth), torch.full((game.n,), torch.nan), 1
            empty, full = worth(ends)
        else:
            empty, full = worth(ends)
            draw = permutation_pairs if way == "permutation" else subset_pairs
            value, width, used = mean_of(draw(game.n, worth, float(empty), float(full), generator), samples, options.tolerance)
            if options.tolerance is not None and not float(width.max()) <= options.tolerance:
                reached = f"{float(width.max()):.3g} after {used} samples"
                extra["notes"].append(f"{name}: `tolerance` {options.tolerance} not reached, it is {reached}; raise `samples`")
        scores[name] = value.tolist()
        extra["value_empty"][name], extra["value_full"][name] = float(empty), float(full)
        extra["estimator"][name], extra["samples"][name] = way, used
        extra["confidence"][name] = [None if w != w else w for w in width.tolist()]
        evaluations, images, passes = evaluations + game.evaluations, game.images, passes + game.passes
    settings = {
        "estimator": options.estimator, "samples": samples, "tolerance": options.tolerance, "coalition_size": size,
    }  # fmt: skip
    widest = max((w for row in extra["confidence"].values() for w in row if w), default=None)
    if widest is not None:
        extra["notes"].insert(0, f"95 % confidence intervals are within +-{widest:.3g}; `samples` or `tolerance` narrow them")
    estimated = set(extra["estimator"].values()) != {"exact"}
    extra = {**{k: v for k, v in extra.items() if v}, "image_passes": passes}
    return FilterScores(
        "shapley", scores, estimated, evaluations, time.perf_counter() - start, images, seed, settings, {}, extra, True
    )


def exact(v: Tensor) -> Tensor:
    """Values from the worth of all 2^n coalitions (float64, bit i of the index is unit i): eq. 2, every coalition in it."""
    return by_size(v).mean(1)


def by_size(v: Tensor) -> Tensor:
    """Mean marginal worth of each unit over the coalitions of each size, float64 [units, sizes]."""
    n = len(v).bit_length() - 1
    size = torch.zeros(1, dtype=torch.int64)
    for _ in range(n - 1):  # members of each coalition of the other units
        size = torch.cat([size, size + 1])
    choices = torch.tensor([comb(n - 1, s) for s in range(n)], dtype=torch.float64)
    rows = []
    for unit in range(n):
        pairs = v.view(-1, 2, 2**unit)  # without the unit, with it
        marginal = (pairs[:, 1] - pairs[:, 0]).flatten()
        rows.append(torch.bincount(size, weights=marginal, minlength=n) / choices)
    return torch.stack(rows)


def truncated(n: int, k: int, worth: Worth) -> Tensor:
    """Coalitions of fewer than `k` units: the mean over sizes 0 to k-1 of the mean marginal worth."""
    k = min(k, n)
    total = sum(comb(n, s) for s in range(k + 1))
    if k < 1 or total > 2**POWER_SET:
        raise SlimrankError(
            f"`coalition_size` {k} of {n} filters needs {total:.1e} coalitions; it must be at least 1 and need at most "
            f"{2**POWER_SET:.1e}; 2 needs {1 + n + comb(n, 2):,}"
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
            value[unit] += marginal / comb(n - 1, len(chosen) - 1) / k
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
    """Mean of independent draws, half-width of its 95 % confidence interval (normal), and how many were drawn."""
    seen: list[Tensor] = []
    while len(seen) < most:
        seen.append(next(draws))
        if len(seen) > 1:
            width = 1.96 * torch.stack(seen).std(0) / len(seen) ** 0.5
            if tolerance is not None and len(seen) >= FEWEST and float(width.max()) <= tolerance:
                break
    every = torch.stack(seen)
    width = 1.96 * every.std(0) / len(seen) ** 0.5 if len(seen) > 1 else torch.full((every.shape[1],), torch.nan)
    return every.mean(0), width, len(seen)
