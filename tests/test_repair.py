"""Repair of a cut network: which ways there are, which of them is taken, and what is told of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.compress.pruning.select import uniform
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.stages.measure import decided
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.stages.repair import AS_CUT, RECALIBRATED, RECONSTRUCTED, figures, held_out, logit_errors, repair
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing, open_data

from .toy_models import Branching, lively

GREY = Preprocessing.default(1, 16)
FEW = PruneOptions(calibration_images=100)


def network(norms: bool = True) -> nn.Sequential:
    def norm() -> nn.Module:
        return nn.BatchNorm2d(12) if norms else nn.Identity()

    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 12, 3), norm(), nn.ReLU(), nn.Conv2d(12, 12, 3), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return lively(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 10)), torch.randn(32, 1, 16, 16))


class Follows(Branching):
    """A network that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.classifier((self.more(x) if x.mean() > 0.1 else x).mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    return open_data("digits", GREY, limit=120)


def repaired(model, data, options=FEW, share=0.5):
    channels = channel_map(model, torch.randn(1, 1, 16, 16))
    plan, smaller = PruningPlan(keep={}, macs_before=1, macs_after=1, budget={"macs": 0.5}, scope="layer", ranker="l1"), model
    if share < 1:
        plan = uniform(model, channels, share)
        smaller = apply_plan(model, channels, plan, torch.randn(2, 1, 16, 16))
    return repair(model, channels, plan, smaller, data, options)


@pytest.mark.parametrize(
    ("model", "share", "ways", "taken"),
    [
        (network(), 0.5, [AS_CUT, RECALIBRATED, RECONSTRUCTED], RECONSTRUCTED),
        (network(norms=False), 0.5, [AS_CUT, RECONSTRUCTED], RECONSTRUCTED),
        (Follows().eval(), 1.0, [AS_CUT, RECALIBRATED], AS_CUT),
    ],
    ids=["all", "no BatchNorm", "nothing cut, not followed"],
)
def test_the_way_with_the_least_error_on_held_out_images_is_taken(data, model, share, ways, taken):
    found = repaired(model, data, share=share)
    assert list(found.ways) == ways
    images = held_out(data.split("train").sample(FEW.calibration_images, FEW.seed))
    errors = logit_errors(model, found.ways, images)
    assert found.taken == min(errors, key=lambda way: errors[way]) == taken


def test_a_way_that_would_do_harm_is_told_and_left():
    """Where nothing is cut, BatchNorm's statistics of a hundred other images can only take the logits away."""
    data = open_data("digits", GREY, limit=120)
    found = repaired(Follows().eval(), data, share=1.0)
    assert "torch.fx cannot follow" in found.note
    assert "BatchNorm recalibrated it would be further from the dense network's logits" in found.note
    assert "as cut 0)" in found.note


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ({"reconstruct": True}, RECONSTRUCTED),
        ({"reconstruct": False, "recalibrate": True}, RECALIBRATED),
        ({"reconstruct": False, "recalibrate": False}, AS_CUT),
    ],
    ids=["reconstruct", "recalibrate", "neither"],
)
def test_what_is_asked_for_is_done(data, asked, taken):
    found = repaired(network(), data, PruneOptions(calibration_images=100, **asked), share=1.0)
    assert found.taken == taken
    assert not found.note


def test_reconstruction_that_is_asked_for_and_cannot_be_done_is_refused(data):
    with pytest.raises(SlimrankError, match=r"torch\.fx cannot follow"):
        repaired(Follows().eval(), data, PruneOptions(reconstruct=True), share=1.0)


def test_without_images_a_cut_stays_as_it_was_made():
    found = repaired(network(), None)
    assert list(found.ways) == [AS_CUT]


def test_the_error_of_logits_does_not_count_what_all_classes_share(data):
    class Shifted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x.mean((1, 2, 3))[:, None]

    model = network()
    ways = {"shifted": Shifted(model), "other": nn.Sequential(model, nn.Softmax(1))}
    errors = logit_errors(model, ways, data.split("train"))
    assert errors["shifted"] < 1e-9
    assert errors["other"] > 0.1


def test_figures_tell_every_way_and_the_words_end_at_the_one_taken(data):
    model = network()
    found = repaired(model, data)
    before, after = decided(model, data), decided(found.model, data)
    told = figures(before, found, after, data, FEW)
    assert told.reconstructed.top1 == after.top1
    assert [told.to_dict()[way]["top1"] for way in (AS_CUT, RECALIBRATED)] == [
        decided(found.ways[way], data).top1 for way in (AS_CUT, RECALIBRATED)
    ]
    assert str(told).startswith("as cut 0.")
    assert "BatchNorm recalibrated 0." in str(told)
    assert "reconstructed from 100 images in" in str(told)


def test_figures_of_a_network_without_batchnorm_do_not_name_it(data):
    model = network(norms=False)
    found = repaired(model, data)
    told = figures(decided(model, data), found, decided(found.model, data), data, FEW)
    assert told.recalibrated is None
    assert "BatchNorm" not in str(told)
