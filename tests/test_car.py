"""CAR, greedy CAR and sensitivity against brute force."""

import copy
from fractions import Fraction

import pytest
import torch

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.network.checkpoint import load
from slimrank.compress.rankers import RANKERS, car, shapley
from slimrank.compress.rankers.sensitivity import sensitivity
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

from . import reference
from .digits import Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_car_is_the_difference_that_masking_makes(digits):
    scores = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10)
    n = len(digits.y)
    total = 0
    for layer, values in scores.scores.items():
        v = digits.worth(layer)
        everyone = range(len(values))
        for unit, value in enumerate(values):
            assert round(value * n) == round((v(everyone) - v(set(everyone) - {unit})) * n)
        total += len(values) + 1
    assert scores.evaluations == total
    assert not scores.estimated


def test_car_by_class_sums_to_car_exactly(digits):
    scores = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10)
    sizes = torch.bincount(digits.y, minlength=10).tolist()
    for layer, rows in scores.car_by_class.items():
        for value, row in zip(scores.scores[layer], rows, strict=True):
            lost = [round(share * size) for share, size in zip(row, sizes, strict=True)]
            assert all(abs(share * size - k) < 1e-9 for share, size, k in zip(row, sizes, lost, strict=True))
            weighted = sum(Fraction(size, sum(sizes)) * Fraction(k, size) for size, k in zip(sizes, lost, strict=True))
            assert weighted == Fraction(round(value * sum(sizes)), sum(sizes))


@pytest.fixture(scope="module")
def silenced(digits):
    """The model with conv1's filter 2 silent."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv1.weight[2], model.conv1.bias[2] = 0, -1
    return model


def test_a_filter_that_never_fires_has_no_car(digits, silenced):
    scores = RANKERS["car"](silenced, digits.channels, digits.batches, classes=10, layers=["conv1"])
    assert scores.scores["conv1"][2] == 0
    assert scores.ties["conv1"][2] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("estimator", shapley.ESTIMATORS)
def test_a_filter_that_never_fires_has_no_value(estimator, digits, silenced):
    scores = RANKERS["shapley"](silenced, digits.channels, digits.batches, classes=10, layers=["conv1"], estimator=estimator)
    assert scores.scores["conv1"][2] == 0


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_ties_of_car_are_the_log_likelihood_that_a_removal_costs(layer, digits):
    """Positive for a filter that helps: between equals, the one whose removal costs most stays."""
    scores = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10, layers=[layer])
    units = digits.channels.group(layer).units

    def likelihood(mask: list[bool]) -> float:
        logits = reference.naive_logits(digits.model, digits.channels, layer, mask, digits.x)
        return float(logits.log_softmax(1).gather(1, digits.y[:, None]).sum())

    whole = likelihood([True] * units)
    lost = [whole - likelihood([i != unit for i in range(units)]) for unit in range(units)]
    assert scores.ties[layer] == pytest.approx(lost, abs=1e-3)  # the game is played in float32
    assert max(lost) > 1


@pytest.mark.parametrize(("ranker", "options"), [
    ("car", {}), ("car", {"greedy": True}), ("shapley", {"estimator": "exact"}), ("sensitivity", {}),
], ids=["car", "greedy car", "shapley", "sensitivity"])  # fmt: skip
def test_comparable_scores_are_higher_for_what_must_stay(ranker, options, digits):
    """One filter of conv1 carries everything, the others are silent: it alone has a positive score."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        silent = torch.arange(6) != 3
        model.conv1.weight[silent], model.conv1.bias[silent] = 0, -1
    arguments = (model, digits.channels, digits.batches)
    if ranker == "sensitivity":
        scores = sensitivity(*arguments, RANKERS["l1"](model, digits.channels), classes=10, layers=["conv1"])
    else:
        scores = RANKERS[ranker](*arguments, classes=10, layers=["conv1"], **options)
    everyone = [True] * 6
    whole, none = (
        int(reference.hits(model, digits.channels, "conv1", mask, digits.x, digits.y).sum())
        for mask in (everyone, [not stays for stays in everyone])
    )
    assert whole > none
    assert scores.comparable
    assert scores.order("conv1")[-1] == 3
    assert scores.scores["conv1"][3] >= 0
    if ranker != "sensitivity" and not options.get("greedy"):  # these two leave one filter, the carrier, out of the count
        assert scores.scores["conv1"][3] == pytest.approx((whole - none) / len(digits.y))
    assert [score for unit, score in enumerate(scores.scores["conv1"]) if unit != 3] == [0.0] * 5


def test_classes_without_images_are_said(digits):
    some = digits.y < 4
    found = RANKERS["car"](digits.model, digits.channels, [(digits.x[some], digits.y[some])], classes=10, layers=["fc2"])
    assert found.car_by_class["fc2"][0][4:] == [None] * 6
    assert "no images of 6 classes (4, 5, 6, 7, 8, ...)" in str(found)


@pytest.mark.parametrize(("layer", "rounds"), [("conv1", 5), ("conv2", 1), ("conv2", 4), ("fc1", 3), ("fc1", 6), ("fc2", 6)])
def test_greedy_with_early_drop_is_brute_force(digits, layer, rounds):
    game = Coalitions(digits.model, digits.channels, layer, digits.batches, classes=10, dtype=torch.float64, hard_first=True)
    game.activations.rows = 10
    game.activations.hard_first()  # small chunks: something to drop
    order = car.backward(game, rounds)
    expected = reference.greedy(digits.model, digits.channels, layer, rounds, digits.x, digits.y)
    assert order == expected
    n = game.n
    assert game.evaluations == rounds * n - rounds * (rounds - 1) // 2
    assert game.passes < game.evaluations * len(digits.y)  # some were dropped on the way
    left = car.last(game, [unit for unit, _ in order])
    assert {unit for unit, _ in left} == set(range(n)) - {unit for unit, _ in order}
    without = {}  # correct images and log-likelihood; whatever was dropped on the way, these counts are whole
    for unit, _ in left:
        gone = {unit, *(u for u, _ in order)}
        logits = reference.naive_logits(digits.model, digits.channels, layer, [i not in gone for i in range(n)], digits.x)
        likelihood = float(logits.log_softmax(1).gather(1, digits.y[:, None]).sum())
        without[unit] = (int((logits.argmax(1) == digits.y).sum()), likelihood)
    assert left == [
        (unit, without[unit][0]) for unit in sorted(without, key=lambda unit: (*without[unit], -unit), reverse=True)
    ]


def test_greedy_on_the_real_network(resnet20, cifar):
    checkpoint = load(resnet20, model="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing, validation="test:0.5", limit=16)
    x, y = next(iter(data.split("validation").batches(16)))
    model = checkpoint.model.double().eval()
    channels = channel_map(model, x[:1].double())
    game = Coalitions(model, channels, "layer3.2.conv1", [(x.double(), y)], classes=10, dtype=torch.float64, hard_first=True)
    order = car.backward(game, 2)
    assert order == reference.greedy(model, channels, "layer3.2.conv1", 2, x.double(), y)


def test_greedy_scores_are_the_order_of_removal(digits):
    found = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10, greedy=True, remove=3)
    for layer, steps in found.extra["removed"].items():
        n = digits.channels.group(layer).units
        assert [unit for unit, _ in steps] == found.order(layer)[:3]
        assert sorted(found.ties[layer]) == list(range(n))
        whole = round(digits.worth(layer)(range(n)) * len(digits.y))
        lost = [(whole - correct) / len(digits.y) for _, correct in steps]
        assert [found.scores[layer][unit] for unit, _ in steps] == [max(lost[: k + 1]) for k in range(3)]
    assert found.evaluations == sum(1 + 3 * n - 3 + n - 3 for n in (6, 8, 16, 7))
    with pytest.raises(SlimrankError, match="`remove` must be at least 1"):
        RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10, greedy=True, remove=0)


def test_sensitivity_scores_are_the_accuracy_lost_so_far(digits):
    """At each measured point, that of the point or of an earlier one; a straight line between two goes no higher."""
    ranked = RANKERS["random"](digits.model, digits.channels, seed=1)
    scores = sensitivity(digits.model, digits.channels, digits.batches, ranked, classes=10)
    for layer, values in scores.scores.items():
        order, worth = ranked.order(layer), digits.worth(layer)
        accuracy = {int(n): worth(order[int(n) :]) for _, n, _ in scores.sensitivity[layer]}
        for n in list(accuracy)[1:]:
            lost = max(0.0, *(accuracy[0] - accuracy[m] for m in accuracy if m <= n))
            assert values[order[n - 1]] == pytest.approx(lost, abs=1e-9)
        assert max(values) > 0.2
