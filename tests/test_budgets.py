"""Budgets that need a clock or a trial, costs, sensitivity. Nothing here asserts a time."""

from dataclasses import replace

import pytest
import torch

from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.pruning import costs as costing
from slimrank.compress.pruning import latency_budget
from slimrank.compress.pruning.accuracy_budget import within_drop
from slimrank.compress.pruning.budget import plan
from slimrank.compress.pruning.costs import Costs
from slimrank.compress.pruning.options import Cut
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.rankers.sensitivity import sensitivity
from slimrank.errors import SlimrankError
from slimrank.export.to_onnx import export


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.build("resnet20-cifar").eval()
    channels = channel_map(model, torch.randn(1, 3, 32, 32))
    return model, channels, RANKERS["l1"](model, channels)


def invented(model, channels, slow: str = "no layer", block: int = 16) -> Costs:
    """Time as MACs in blocks of channels, ten times as much in layers whose name begins with `slow`."""
    area = {name: per_pair * (10 if name.startswith(slow) else 1) for name, per_pair in channels.positions.items()}
    raw = Costs({name: (0.0, value, 0.0, 0.0) for name, value in area.items()}, {1: {}}, block, 1, 0.0)
    whole = raw.share(model, channels, channels.removed({}))
    return Costs({name: (0.0, value / whole, 0.0, 0.0) for name, value in area.items()}, {1: {}}, block, 1, 0.0)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_parameters_are_met_and_exact(resnet, share):
    model, channels, scores = resnet
    made = select(model, channels, scores, params=share)
    smaller = apply_plan(model, channels, made, torch.randn(2, 3, 32, 32))
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert 0.98 * share <= after / before <= share
    assert after == channels.params(model, channels.removed(made.keep))


def test_protected_layers_stay_whole_and_the_least_possible_is_told(resnet):
    model, channels, scores = resnet
    made = select(model, channels, scores, macs=0.6, protect=["layer1.0.conv1", "layer3.1.conv2"], min_filters=5)
    assert "layer1.0.conv1" not in made.keep  # a group that is not named stays whole
    assert "layer3.0.conv2" not in made.keep  # any member of the group will do
    assert min(len(kept) for kept in made.keep.values()) >= 5
    with pytest.raises(SlimrankError, match="near ones"):
        select(model, channels, scores, macs=0.5, protect=["layer9"])
    streams = ["conv1", "layer2.0.conv2", "layer3.0.conv2"]
    with pytest.raises(SlimrankError, match=r"all of conv1, layer2.0.conv2, layer3.0.conv2, the least is a `macs`") as told:
        select(model, channels, scores, macs=0.01, protect=streams)
    least = float(str(told.value).rsplit(" ", 1)[1])
    select(model, channels, scores, macs=least, protect=streams)  # what is told can be had
    with pytest.raises(SlimrankError, match="not protected"):
        select(model, channels, scores, macs=0.5, protect=[g.name for g in channels.groups if g.prunable])
    with pytest.raises(SlimrankError, match=r"a tenth of the filters, as `scope` global keeps.* the least is a `macs`"):
        select(model, channels, scores, macs=0.005, scope="global")
    with pytest.raises(SlimrankError, match=r"with 100 filters \(`min_filters`\) left .* nothing can be cut at all"):
        select(model, channels, scores, macs=0.5, min_filters=100)
    few = replace(scores, scores={"layer3.2.conv1": scores.scores["layer3.2.conv1"]})
    assert (
        "no scores for conv1, layer1.0.conv1, layer1.1.conv1 and 8 more: left whole"
        in select(model, channels, few, macs=0.98).note
    )
    with pytest.raises(SlimrankError, match=r"no scores for conv1, .* and 8 more: left whole\), the least is"):
        select(model, channels, few, macs=0.5)
    with pytest.raises(SlimrankError, match=r"`protect` linear: no filter of it is ever cut \(its outputs"):
        select(model, channels, scores, macs=0.5, protect=["linear"])


def test_a_budget_that_no_filter_fits_says_so():
    torch.manual_seed(0)
    model = zoo.build("lenet5", {"widths": (2, 2, 100, 25)}).eval()
    channels = channel_map(model, torch.randn(1, 1, 28, 28))
    worth = FilterScores(ranker="l1", scores={"conv1": [1.0, 2.0]})
    made = select(model, channels, worth, macs=0.8)
    assert made.macs_after / made.macs_before < 0.98 * 0.8
    assert "would, put back, overshoot" in made.note
    assert made.note in str(made)


def test_costs_send_the_cut_where_time_goes(resnet):
    model, channels, scores = resnet
    clock = invented(model, channels, "layer3")
    plain = select(model, channels, scores, macs=0.5, align=16)
    timed = select(model, channels, scores, macs=0.5, align=16, costs=clock)
    for made in (plain, timed):
        assert 0.49 <= made.macs_after / made.macs_before <= 0.5
    deep = [name for name in timed.widths if name.startswith("layer3")]
    assert sum(timed.widths[n][1] for n in deep) < sum(plain.widths[n][1] for n in deep)
    times = [clock.share(model, channels, channels.removed(made.keep)) for made in (plain, timed)]
    assert times[1] < times[0]
    even = invented(model, channels)
    made = select(model, channels, scores, latency=0.6, costs=even, align=16)
    assert 0.9 * 0.6 <= even.share(model, channels, channels.removed(made.keep)) <= 0.6


@pytest.mark.parametrize("bent", [0.7, 1.0, 1.4])
def test_a_latency_budget_is_held_to_by_the_clock(resnet, monkeypatch, bent):
    """The clock here is the promise to a power: whatever is promised, the plan that is taken was measured near."""
    model, channels, scores = resnet
    promised = invented(model, channels, block=1)
    cuts = []
    monkeypatch.setattr(latency_budget, "export", lambda made, example, path, about: path)
    monkeypatch.setattr(latency_budget, "sliced", lambda model, channels, gone: cuts.append(gone))
    monkeypatch.setattr(latency_budget, "time_share", lambda *_: promised.share(model, channels, cuts[-1]) ** bent)
    made = plan(model, channels, scores, Cut(latency=0.5, align=1), torch.randn(2, 3, 32, 32), costs=promised)
    assert 0.475 <= made.budget["measured"] <= 0.525
    assert "measured" in made.note
    with pytest.raises(SlimrankError, match="the classifier alone"):
        plan(model, channels, scores, Cut(latency=0.0001, align=1), torch.randn(2, 3, 32, 32), costs=promised)


def test_the_largest_cut_within_a_drop():
    """Accuracy falls with the share cut; the trials close in on where it crosses."""
    asked = []

    def trial(cut: Cut) -> float:
        assert cut.max_drop is None
        asked.append(cut.macs)
        return 0.9 - 0.2 * (1 - cut.macs)

    cut, trials = within_drop(Cut(max_drop=0.05, protect=("a",)), trial, 0.9)
    assert 0.75 <= cut.macs <= 0.75 + 1 / 32
    assert cut.protect == ("a",)
    assert [trial.macs for trial in trials] == asked
    with pytest.raises(SlimrankError, match="fine-tune longer"):
        within_drop(Cut(max_drop=0.01), lambda cut: 0.5, 0.9)


def test_steps_multiply_to_the_whole_budget():
    assert Cut(macs=0.512).step(1, 3, 0.8).macs == pytest.approx(0.8)
    assert Cut(macs=0.512).step(2, 3, 0.6).macs == pytest.approx(0.512 / 0.6)  # the last aims at the whole budget
    assert Cut(ratio=0.75).step(0, 2).ratio == pytest.approx(0.5)
    assert Cut(ratio=0.75).step(1, 2, 0.4).ratio == pytest.approx(1 - 0.25 / 0.4)
    assert Cut(latency=0.25).step(0, 2).latency == pytest.approx(0.5)
    with pytest.raises(SlimrankError, match="`steps`"):
        Cut(max_drop=0.1).step(0, 2)


@pytest.mark.parametrize("name", ["resnet20-cifar", "vgg16-cifar", "convnext_tiny", "mobilenet_v3_small"])
def test_every_kernel_is_put_down_to_a_layer(tmp_path, name):
    """Fused convs and transposed matrices alike: no layer without time."""
    torch.manual_seed(0)
    model = zoo.build(name, {"num_classes": 10}).eval()
    example = torch.randn(2, 3, 32, 32)
    channels = channel_map(model, example[:1])
    path = export(model, example, tmp_path / "model.onnx", {})
    times = costing.by_layer(model, channels, path, 1, 1)
    assert set(times) == set(channels.positions)
    assert min(times.values()) > 0


def test_costs_are_fitted_without_negative_terms():
    torch.manual_seed(0)
    model = zoo.build("lenet5", {"widths": (16, 32, 64, 32)}).eval()
    example = torch.randn(2, 1, 28, 28)
    channels = channel_map(model, example[:1])
    made = costing.measure_costs(model, channels, example, block=16, batches=(1, 4))
    assert set(made.terms) == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert all(term >= 0 for terms in made.terms.values() for term in terms)
    assert set(made.measured) == {1, 4}


def test_sensitivity_is_the_accuracy_of_each_layer_cut_alone(resnet):
    model, channels, scores = resnet
    torch.manual_seed(1)
    x, labels = torch.randn(120, 3, 32, 32), torch.arange(120) % 10
    found = sensitivity(model, channels, [(x, labels)], scores, classes=10, layers=["layer2.0.conv1", "conv1"])
    assert set(found.scores) == {"conv1", "layer2.0.conv1"}
    for name, points in found.sensitivity.items():
        order = scores.order(name)
        for share, n, top1 in points:
            group = channels.group(name)
            gone = channels.removed({name: sorted(order[int(n) :])})
            with torch.inference_mode(), masked(model, channels, gone):
                expected = (model(x).argmax(1) == labels).float().mean()
            assert top1 == pytest.approx(float(expected), abs=1e-6)
            assert share == n / group.units
        lost = [found.scores[name][unit] for unit in order]
        assert lost == sorted(lost)
        assert found.order(name) == order  # the ranker's order stays, what it costs is new
    assert found.comparable
    made = select(model, channels, found, macs=0.9, scope="global")
    assert set(made.keep) == {"conv1", "layer2.0.conv1"}
