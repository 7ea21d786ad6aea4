"""Shapley values against both formulas of the paper, and its estimators."""

import copy
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.compress.rankers import RANKERS, shapley

from . import reference
from .digits import Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def silenced(digits):
    """The model with conv1's filter 2 silent."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv1.weight[2], model.conv1.bias[2] = 0, -1
    return model


@pytest.mark.parametrize("layer", ["conv1", "fc2"])
def test_exact_shapley_is_both_formulas(digits, layer):
    found = RANKERS["shapley"](digits.model, digits.channels, digits.batches, classes=10, layers=[layer], estimator="exact")
    n, v = digits.channels.group(layer).units, digits.worth(layer)
    torch.testing.assert_close(found.scores[layer], reference.shapley_by_subsets(n, v), rtol=1e-9, atol=1e-12)
    if n <= 6:
        torch.testing.assert_close(found.scores[layer], reference.shapley_by_orders(n, v), rtol=1e-9, atol=1e-12)
    assert found.evaluations == 2**n
    assert not found.estimated
    assert found.extra["value_full"][layer] == v(range(n))
    assert found.extra["value_empty"][layer] == v([])
    assert sum(found.scores[layer]) == pytest.approx(v(range(n)) - v([]), abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_truncated_shapley(digits, size):
    found = RANKERS["shapley"](
        digits.model, digits.channels, digits.batches, classes=10, layers=["conv1"], estimator="truncated", coalition_size=size
    )
    expected = reference.shapley_truncated(6, size, digits.worth("conv1"))
    torch.testing.assert_close(found.scores["conv1"], expected, rtol=1e-9, atol=1e-12)
    assert found.evaluations == sum(comb(6, s) for s in range(size + 1)) + 2
    if size == 6:
        every = reference.shapley_by_subsets(6, digits.worth("conv1"))
        torch.testing.assert_close(found.scores["conv1"], every, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("estimator", "each"), [("permutation", 2 * 5), ("subsets", 2 * 6)])
def test_sampled_shapley_counts_and_adds_up(digits, estimator, each):
    options = {"classes": 10, "layers": ["conv1"], "estimator": estimator, "samples": 40}
    found = RANKERS["shapley"](digits.model, digits.channels, digits.batches, **options)
    assert found.evaluations == 2 + 40 * each
    assert found.estimated
    exact = torch.tensor(reference.shapley_by_subsets(6, digits.worth("conv1")))
    width = torch.tensor(found.extra["confidence"]["conv1"])
    assert bool(((torch.tensor(found.scores["conv1"]) - exact).abs() <= 2 * width + 1e-12).all())  # four standard errors
    if estimator == "permutation":
        gain = found.extra["value_full"]["conv1"] - found.extra["value_empty"]["conv1"]
        assert sum(found.scores["conv1"]) == pytest.approx(gain, abs=1e-12)


def test_tolerance_stops_or_says_what_was_reached(digits):
    options = {"classes": 10, "layers": ["conv1"], "estimator": "permutation"}
    loose = RANKERS["shapley"](digits.model, digits.channels, digits.batches, **options, samples=500, tolerance=0.05)
    assert loose.extra["samples"]["conv1"] < 500
    assert max(loose.extra["confidence"]["conv1"]) <= 0.05
    assert "not reached" not in str(loose)
    tight = RANKERS["shapley"](digits.model, digits.channels, digits.batches, **options, samples=6, tolerance=1e-6)
    assert "`tolerance` 1e-06 not reached" in str(tight)
    assert "after 6 samples" in str(tight)


def drawn(samples: int, tolerance: float | None, draws: torch.Tensor) -> int:
    """How many draws `mean_of` should take: at least five, until every 95 % half-width is within the tolerance."""
    for n in range(shapley.FEWEST, samples):
        mean = draws[:n].mean(0)
        half_width = 1.96 * ((draws[:n] - mean).square().sum(0) / (n - 1) / n).sqrt()
        if tolerance is not None and bool((half_width <= tolerance).all()):
            return n
    return samples


@pytest.mark.parametrize("tolerance", [None, 1e-9, 0.2, 0.3, 0.5, 10.0])
def test_draws_stop_at_the_tolerance_and_not_before(tolerance):
    draws = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 0.1, 0.5])
    mean, half_width, taken = shapley.mean_of(iter(draws), 60, tolerance)
    assert taken == drawn(60, tolerance, draws)
    torch.testing.assert_close(mean, draws[:taken].mean(0))
    torch.testing.assert_close(half_width, 1.96 * draws[:taken].std(0) / taken**0.5)


def game_of(values: dict[frozenset, float]):
    def worth(masks: torch.Tensor) -> torch.Tensor:
        return torch.tensor([values[frozenset(m.nonzero().flatten().tolist())] for m in masks], dtype=torch.float64)

    return worth


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_one_antithetic_pair_is_exact_for_two_additive_games(n, seed):
    torch.manual_seed(seed)
    own, both = torch.randn(n).double(), torch.randn(n, n).double().triu(1)
    values = {}
    for code in range(2**n):
        mask = torch.tensor([code >> i & 1 for i in range(n)]).double()
        values[frozenset(mask.nonzero().flatten().tolist())] = float(own @ mask + mask @ both @ mask)
    full = values[frozenset(range(n))]
    pair = next(shapley.permutation_pairs(n, game_of(values), 0.0, full, torch.Generator().manual_seed(seed)))
    torch.testing.assert_close(pair, own + (both.sum(0) + both.sum(1)) / 2, rtol=1e-9, atol=1e-9)
    assert float(pair.sum()) == pytest.approx(full, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(0, 10**6))
def test_exact_on_any_game(n, seed):
    v = torch.rand(2**n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = reference.shapley_by_subsets(n, lambda members: float(v[sum(2**i for i in members)]))
    torch.testing.assert_close(shapley.exact_values(v), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_subset_pairs_draw_sizes_uniformly():
    """Drawn uniformly over subsets, sizes would be binomial: Banzhaf, not Shapley."""
    sizes = []

    def worth(masks):
        sizes.extend(masks[::2].sum(1).tolist())
        return torch.zeros(len(masks), dtype=torch.float64)

    draws = shapley.subset_pairs(5, worth, 0.0, 0.0, torch.Generator().manual_seed(0))
    for _ in range(400):
        next(draws)
    counts = torch.bincount(torch.tensor(sizes), minlength=5) / len(sizes)
    assert bool((counts - 0.2).abs().max() < 0.03)


def test_twins_are_worth_the_same(digits):
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv1.weight[4], model.conv1.bias[4] = model.conv1.weight[1], model.conv1.bias[1]
        model.conv2.weight[:, 4] = model.conv2.weight[:, 1]
    found = RANKERS["shapley"](model, digits.channels, digits.batches, classes=10, layers=["conv1"], estimator="exact")
    assert found.scores["conv1"][1] == pytest.approx(found.scores["conv1"][4], abs=1e-12)


def test_shapley_of_the_features_that_the_classifier_reads(digits):
    found = RANKERS["shapley"](digits.model, digits.channels, digits.batches, classes=10, layers=["fc3"])
    same = RANKERS["shapley"](digits.model, digits.channels, digits.batches, classes=10, layers=["fc2"])
    assert found.scores["fc3"] == same.scores["fc2"]  # fc2's neurons are read by the classifier alone
