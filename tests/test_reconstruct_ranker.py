"""Ranker `reconstruct`: backward elimination of channels by what is lost after the best repair, against fitting anew."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.layerwise import elimination
from slimrank.compress.layerwise.elimination import Elimination, eliminate, ridge_inverse
from slimrank.compress.layerwise.influence import influence
from slimrank.compress.network import zoo
from slimrank.compress.rankers import RANKERS, reconstruct
from slimrank.compress.rankers.reconstruct import RIDGE
from slimrank.errors import SlimrankError

from .digits import Digits
from .reference import greedy_by_refitting, refitted
from .test_surgery import lively


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def rank(model: nn.Module, x: torch.Tensor, **words):
    channels = channel_map(model, x[:1])
    return channels, RANKERS["reconstruct"](model, channels, [(x, torch.zeros(len(x)))], classes=10, **words)


@pytest.fixture
def alike(monkeypatch):
    """Every layer counts alike."""
    monkeypatch.setattr(reconstruct, "influence", lambda _model, names, *_: dict.fromkeys(names, 1.0))


# -- the elimination itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gathered", [1, 6, 144])
@pytest.mark.parametrize("fixed", [(), (1, 4)])
def test_the_downdates_equal_fitting_anew_after_each_removal(gathered, fixed, monkeypatch):
    monkeypatch.setattr(elimination, "GATHERED", gathered)
    generator = torch.Generator().manual_seed(gathered)
    units, size, others = 7, 3, 4
    x = torch.randn(200, units * size + others, dtype=torch.float64, generator=generator)
    x = x @ torch.randn(x.shape[1], x.shape[1], dtype=torch.float64, generator=generator)
    xx = x.T @ x / len(x)
    weight = torch.randn(x.shape[1], 5, dtype=torch.float64, generator=generator)
    columns = torch.randperm(x.shape[1], generator=generator)[: units * size].view(units, size)
    columns[2, 1:] = -1  # a unit of a single column
    of_column = torch.full((x.shape[1],), -1)
    for unit, own in enumerate(columns):
        of_column[own[own >= 0]] = unit
    problem = xx + 1e-2 * xx.diagonal().mean() * torch.eye(len(xx), dtype=torch.float64), weight, of_column, 2.0
    order, added = eliminate([Elimination(ridge_inverse(xx, 1e-2), weight, columns, 0.5)], units, fixed)
    expected, errors = greedy_by_refitting([problem], units, fixed)
    assert order == expected
    assert torch.tensor(added, dtype=torch.float64).cumsum(0).tolist() == pytest.approx(errors, rel=1e-9)


def test_a_duplicated_column_costs_nothing_and_goes_first():
    x = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 4] = x[:, 1]
    weight = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order, added = eliminate([Elimination(ridge_inverse(x.T @ x / 100, 1e-9), weight, torch.arange(6)[:, None])], 6)
    assert order[0] in (1, 4)
    assert added[0] < 1e-7 < 1e-3 < added[1]


# -- in networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_the_order_is_that_of_fitting_anew(layer, digits, alike):
    group = digits.channels.group(layer)
    found = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, layers=[layer])
    (reader,) = digits.channels.readers(group)
    units = digits.channels.reads[reader] - group.offset
    problem = refitted(digits.model, reader, digits.x, units, RIDGE, mean=True)
    order, errors = greedy_by_refitting([problem], group.units)
    assert found.order(layer)[:-1] == order
    curve = found.error[layer]
    assert [n for _, n, _ in curve] == list(range(group.units))
    assert [share for share, _, _ in curve] == [n / group.units for n in range(group.units)]
    assert [error for _, _, error in curve] == pytest.approx([0.0, *errors], rel=1e-4)


class Stream(nn.Module):
    """A residual stream that two convs (one with a BatchNorm, one without a place for a mean) and a classifier read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 1, bias=False)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.a(x)))
        x = F.relu(x + self.b(x))
        return self.classifier(x.mean((2, 3)))


def test_what_several_layers_read_costs_the_sum_of_them(alike):
    torch.manual_seed(0)
    model = lively(Stream())
    x = torch.randn(40, 3, 6, 6, dtype=torch.float64)
    channels, found = rank(model, x)
    assert list(found.scores) == ["stem"]
    means = {"a": True, "b": False, "classifier": True}
    scale = model.norm.weight.detach() / (model.norm.running_var + model.norm.eps).sqrt()
    problems = [
        refitted(model, name, x, channels.reads[name], RIDGE, mean, scale if name == "a" else 1.0)
        for name, mean in means.items()
    ]
    order, errors = greedy_by_refitting(problems, 6)
    assert found.order("stem")[:-1] == order
    assert [error for _, _, error in found.error["stem"]][1:] == pytest.approx(errors, rel=1e-4)


def test_a_duplicated_filter_is_worth_next_to_nothing(digits):
    best = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, layers=["conv2"]).order("conv2")[-1]
    other = (best + 1) % 8
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        for name in ("weight", "bias"):
            tensor = model.conv2.get_parameter(name)
            tensor[other] = tensor[best]
    scores = RANKERS["reconstruct"](model, digits.channels, digits.batches, layers=["conv2"]).scores["conv2"]
    assert min(scores[best], scores[other]) < 1e-2 * max(scores)
    assert max(scores[best], scores[other]) > 0.1 * max(scores)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet20-cifar", 32), ("shufflenet_v2_x0_5", 32), ("regnet_y_400mf", 32), ("mobilenet_v3_small", 32),
     ("squeezenet1_1", 48)],
)  # fmt: skip
def test_every_kind_of_network_is_ranked_and_no_curve_falls(name, size):
    torch.manual_seed(0)
    model = lively(zoo.build(name)).float()
    x = torch.randn(8, 3, size, size)
    channels, found = rank(model, x)
    assert list(found.scores) == channels.chosen(None)
    assert found.comparable
    for layer, curve in found.error.items():
        errors = torch.tensor([error for _, _, error in curve])
        assert bool(torch.isfinite(errors).all())
        assert bool((errors.diff() >= 0).all())
        assert min(found.scores[layer]) >= 0


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        if x.shape[0] > 0:  # what torch.fx cannot trace
            x = F.relu(self.again(x))
        return self.classifier(F.relu(self.again(x)).mean((2, 3)))


def test_a_layer_that_is_called_twice_counts_both_calls_and_nothing_need_be_traced(alike):
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(30, 3, 6, 6, dtype=torch.float64)
    channels, found = rank(model, x)
    units = channels.reads["again"]
    problems = [refitted(model, name, x, units, RIDGE, mean=True) for name in ("again", "classifier")]
    assert found.order("stem")[:-1] == greedy_by_refitting(problems, 8)[0]


def test_a_layer_counts_by_what_its_errors_do_to_the_logits():
    torch.manual_seed(0)
    model = lively(Stream())
    with torch.no_grad():
        model.b.weight.zero_()
        model.norm.weight.mul_(1e-3)
    x = torch.randn(200, 3, 6, 6, dtype=torch.float64)
    found = influence(model, ["stem", "a", "b", "classifier"], x, seed=0)
    assert found["classifier"] == pytest.approx(1, rel=0.1)
    assert found["b"] == 0  # it writes nothing, and a share of nothing is nothing
    assert found["a"] < 1e-3 < found["stem"]


def test_the_influence_multiplies_a_layers_costs(digits, monkeypatch):
    scores = []
    for weight in (1.0, 2.5):
        monkeypatch.setattr(reconstruct, "influence", lambda _model, names, *_, w=weight: dict.fromkeys(names, w))
        found = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, layers=["conv2"])
        scores.append(torch.tensor(found.scores["conv2"], dtype=torch.float64))
    torch.testing.assert_close(scores[1], 2.5 * scores[0])


# -- memory, and what is refused -----------------------------------------------------------------------------------------


def test_little_memory_runs_the_images_more_often_and_finds_the_same(digits):
    plenty = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches)
    seen = []
    handle = digits.model.register_forward_hook(lambda *_: seen.append(1))
    scarce = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, memory=4 * 8 * 150**2)
    handle.remove()
    assert len(seen) > 2 * len(digits.batches)
    assert scarce.scores == plenty.scores


def test_a_layer_too_large_for_the_memory_holds_places_of_the_kernel_uncorrelated(digits):
    memory = 4 * 8 * 150**2 // 25  # of conv2's 6 * 25 inputs
    found = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, layers=["conv1"], memory=memory)
    whole = RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, layers=["conv1"])
    assert found.scores != whole.scores
    assert sorted(found.order("conv1")) == list(range(6))
    assert sum(found.error["conv1"][-1]) > sum(whole.error["conv1"][-1])


def test_too_little_memory_is_refused_with_the_least_that_does(digits):
    with pytest.raises(SlimrankError, match=r"`memory` 100 bytes are too few for layer conv2, which takes 28,800; raise it"):
        RANKERS["reconstruct"](digits.model, digits.channels, digits.batches, memory=100)


def test_activations_that_are_not_finite_name_the_layer(digits):
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv2.bias[3] = torch.nan
    with pytest.raises(SlimrankError, match="layer fc1 reads NaN or infinite activations"):
        RANKERS["reconstruct"](model, digits.channels, digits.batches)


def test_no_images_at_all_are_refused(digits):
    with pytest.raises(SlimrankError, match="raise `limit`"):
        RANKERS["reconstruct"](digits.model, digits.channels, [])


def test_images_that_are_all_alike_are_refused():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    channels = channel_map(model, torch.randn(1, 1, 8, 8))
    with pytest.raises(SlimrankError, match="all 5 images are alike"):
        RANKERS["reconstruct"](model, channels, [(torch.ones(5, 1, 8, 8), torch.zeros(5))])
