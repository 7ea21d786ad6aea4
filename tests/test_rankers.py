"""Every ranker against a slow version closer to its paper, and the exact properties of algorithms.md."""

import copy
from fractions import Fraction
from math import comb

import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.compress.pruning.select import select
from slimrank.compress.rankers import DATA_FREE, RANKERS, SwitchOptions, car, shapley, switch
from slimrank.compress.rankers.compare import LayerAgreement, compare_scores
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.rankers.sensitivity import sensitivity
from slimrank.compress.rankers.torch_pruning_criteria import CRITERIA
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

from . import reference
from .test_surgery import lively


class Digits:
    """A small LeNet trained for a moment on digits: a real accuracy to lose, and few enough filters to enumerate."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = zoo.build("lenet5", {"widths": [6, 8, 16, 7], "size": 16}).double()
        data = open_data("digits", models_preprocessing())
        self.x, self.y = next(iter(data.split("train").batches(600)))
        self.x = self.x.double()
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            optimizer.step()
        self.model.eval()
        self.channels = channel_map(self.model, self.x[:1])
        self.x, self.y = (t[:120] for t in (self.x, self.y))
        self.batches = [(self.x[:70], self.y[:70]), (self.x[70:], self.y[70:])]

    def worth(self, layer: str):
        n = self.channels.group(layer).units
        known: dict[frozenset, float] = {}

        def v(members) -> float:
            key = frozenset(members)
            if key not in known:
                mask = [i in key for i in range(n)]
                right = reference.hits(self.model, self.channels, layer, mask, self.x, self.y)
                known[key] = int(right.sum()) / len(self.y)
            return known[key]

        return v


def models_preprocessing():
    from slimrank.evaluate.data import Preprocessing

    return Preprocessing.default(1, 16)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


# -- all of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RANKERS))
def test_every_ranker_scores_every_group_and_leaves_the_model_alone(name, digits):
    model = copy.deepcopy(digits.model).float() if name != "bn-scale" else lively(zoo.build("vgg16-cifar")).float()
    x = digits.x.float() if name != "bn-scale" else torch.randn(20, 3, 32, 32)
    channels = channel_map(model, x[:1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = None if name in DATA_FREE else [(x, digits.y)]
    assert (name in DATA_FREE) == (RANKERS[name].split is None)
    scores = RANKERS[name](model, channels, batches, classes=10, seed=3)
    assert scores.ranker == name
    assert [n for n in channels.chosen(None) if name != "bn-scale" or n != "classifier.5"] == list(scores.scores)
    for layer, values in scores.scores.items():
        assert len(values) == channels.group(layer).units
        assert bool(torch.isfinite(torch.tensor(values)).all())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    again = RANKERS[name](model, channels, batches, classes=10, seed=3)
    assert again.scores == scores.scores
    some = RANKERS[name](model, channels, batches, classes=10, seed=3, layers=[list(scores.scores)[1]])
    assert list(some.scores) == [list(scores.scores)[1]]


def test_scores_round_trip_with_what_only_one_ranker_tells(tmp_path, digits):
    scores = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10)
    scores.save(tmp_path / "s.json")
    again = FilterScores.load(tmp_path / "s.json")
    assert again == scores
    assert again.car_by_class


def test_ties_decide_between_equal_scores_then_the_index(digits):
    scores = FilterScores(
        ranker="x", scores={"conv1": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]}, ties={"conv1": [0.0, 3.0, 2.0, 2.0, 5.0, -1.0]}
    )
    assert scores.order("conv1") == [2, 3, 1, 5, 0, 4]
    plan = select(digits.model, digits.channels, scores, ratio=0.5)
    assert plan.keep["conv1"] == [0, 4, 5]


def test_layers_that_cannot_be_ranked():
    model = lively(zoo.build("shufflenet_v2_x0_5"))
    channels = channel_map(model, torch.randn(1, 3, 32, 32).double())
    with pytest.raises(
        SlimrankError, match=r"branch1.2 cannot be pruned or masked alone \(tied to stage2.0.branch2.5, .*\): its 24 channels"
    ):
        channels.chosen(["stage2.0.branch1.2"])
    with pytest.raises(SlimrankError, match="its outputs are the model's classes"):
        channels.chosen(["fc"])
    assert channels.chosen(["fc"], features=True) == ["fc"]


# -- CAR -----------------------------------------------------------------------------------------------------------------


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


# -- Shapley -------------------------------------------------------------------------------------------------------------


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


# -- importance switch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha0", [0.3, 1.0])
def test_kl_is_the_formula_and_zero_only_at_the_prior(alpha0, digits):
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    theta = torch.randn(game.n, generator=torch.Generator().manual_seed(1)).double()
    _, kl = switch.loss(game, theta, list(chunk.crossing), chunk.labels, SwitchOptions(alpha0=alpha0))
    phi = nn.functional.softplus(theta)
    expected = reference.dirichlet_kl(phi, torch.full_like(phi, alpha0))
    assert float(kl) * game.images == pytest.approx(expected, rel=1e-9)
    assert expected > 0
    prior = torch.full((game.n,), alpha0).double().expm1().log()
    _, kl = switch.loss(game, prior, list(chunk.crossing), chunk.labels, SwitchOptions(alpha0=alpha0))
    assert float(kl) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha0", [0.3, 2.0])
def test_what_the_images_do_not_tell_is_left_to_the_prior(alpha0, digits):
    """Where nothing reads the filters, the likelihood is flat: KL alone moves phi, to alpha0 for every filter."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv2.weight.zero_()
    batches = [(x, y) for x, y in digits.batches]
    game = Coalitions(model, digits.channels, "conv1", batches, classes=10, dtype=torch.float64)
    phi, _ = switch.learn(game, SwitchOptions(alpha0=alpha0, epochs=300, lr=0.05))
    assert phi.tolist() == pytest.approx([alpha0] * game.n, rel=0.02)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_identity_uniform_phi_leaves_the_logits_as_they_are(layer, digits):
    game = Coalitions(digits.model, digits.channels, layer, digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    nll, _ = switch.loss(
        game,
        torch.full((game.n,), 0.7).double(),
        list(chunk.crossing),
        chunk.labels,
        SwitchOptions(alpha0=1.0, identity=True),
    )
    x = digits.x[: len(chunk)]
    expected = nn.functional.cross_entropy(digits.model(x), chunk.labels)
    assert float(nll) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_switch_before_relu_and_behind_it_are_the_same(digits):
    """The paper's place (before the activation) against ours (where the next layer reads), for ReLU and pooling."""
    s = torch.rand(6, generator=torch.Generator().manual_seed(0)).double()
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    game.split.scale(s)
    ours = game.split.after(*next(game.chunks()).crossing)
    paper = copy.deepcopy(digits.model)
    paper.conv1.register_forward_hook(lambda _m, _i, out: out * s.view(1, -1, 1, 1))
    torch.testing.assert_close(ours, paper(digits.x)[: len(ours)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampled", [False, True])
def test_samples_differ_and_the_mean_does_not(sampled, digits):
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    torch.manual_seed(0)
    theta = torch.zeros(game.n, dtype=torch.float64)
    options = SwitchOptions(sampled=sampled)
    nlls = {float(switch.loss(game, theta, list(chunk.crossing), chunk.labels, options)[0]) for _ in range(4)}
    assert len(nlls) == (4 if sampled else 1)


@pytest.mark.parametrize("sampled", [False, True])
def test_switch_learns(digits, sampled):
    batches = [(x.float(), y) for x, y in digits.batches]
    found = RANKERS["switch"](digits.model, digits.channels, batches, classes=10, layers=["conv2"], sampled=sampled, epochs=30)
    curve = found.extra["curve"]["conv2"]
    assert len(curve) == 30
    first, last = sum(curve[:10]) / 10, sum(curve[-10:]) / 10  # one draw of s a step is noisy
    assert last < first - 0.01, (first, last)
    assert sum(found.scores["conv2"]) == pytest.approx(1, abs=1e-6)
    assert found.evaluations == 30


# -- torch-pruning's criteria --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criteria_are_theirs(name):
    """On a network that their graph follows, the same numbers as from their own groups."""
    torch.manual_seed(0)
    model = lively(zoo.build("vgg16-cifar", {"widths": [8, 8, 12, 12, 16, 16, 16, 20, 20, 20, 20, 20, 20, 24, 28]})).float()
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    channels = channel_map(model, x[:1])
    layers = ["features.0", "features.14"]  # their groups of hidden linear layers leave BatchNorm1d out
    ours = RANKERS[name](model, channels, [(x, y)], classes=10, layers=layers)
    theirs = copy.deepcopy(model).eval()
    if name == "taylor":
        nn.functional.cross_entropy(theirs(x), y, reduction="sum").backward()
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, example_inputs=x[:1])
    for layer in layers:
        conv = theirs.get_submodule(layer)
        group = graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=list(range(conv.out_channels)))
        torch.testing.assert_close(torch.tensor(ours.scores[layer]).float(), CRITERIA[name]()(group), rtol=1e-4, atol=1e-5)


def test_bn_scale_needs_batchnorm(digits):
    with pytest.raises(SlimrankError, match="bn-scale says nothing of conv1, conv2, fc1, fc2: no BatchNorm"):
        RANKERS["bn-scale"](digits.model, digits.channels)
    vgg = lively(zoo.build("vgg16-cifar")).float()
    channels = channel_map(vgg, torch.randn(1, 3, 32, 32))
    assert "says nothing of classifier.5: no BatchNorm follows, left out" in str(RANKERS["bn-scale"](vgg, channels))
    with pytest.raises(SlimrankError, match=r"classifier\.5: no BatchNorm follows; take another"):
        RANKERS["bn-scale"](vgg, channels, layers=["features.0", "classifier.5"])


# -- comparison ----------------------------------------------------------------------------------------------------------


def test_compare():
    a = FilterScores(ranker="a", scores={"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "y": [1.0, 1.0]})
    same = compare_scores(a, a)
    assert same.layers["x"] == LayerAgreement(spearman=pytest.approx(1), shared=5, by_chance=25 / 7)
    assert same.layers["y"].spearman is None
    assert same.to_dict()["layers"]["x"] == {"spearman": pytest.approx(1), "top5": 5, "by_chance": 25 / 7}
    back = compare_scores(a, FilterScores(ranker="b", scores={"x": [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}), top=2)
    assert back.layers == {"x": LayerAgreement(spearman=pytest.approx(-1), shared=0, by_chance=4 / 7)}


@pytest.mark.parametrize(
    ("scores", "top", "message"),
    [
        ({"z": [1.0]}, 5, "no layer in common"),
        ({"x": [1.0]}, 5, "7 filters in one file and 1 in the other"),
        ({"x": [1.0] * 7}, 0, "`top` is 0, must be at least 1 filter"),
    ],
    ids=["layers", "widths", "top"],
)
def test_what_cannot_be_compared(scores, top, message):
    a = FilterScores(ranker="a", scores={"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]})
    with pytest.raises(SlimrankError, match=message):
        compare_scores(a, FilterScores(ranker="b", scores=scores), top)
