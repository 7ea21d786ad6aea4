"""Rankers, budgets and MACs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.compress.channels.features import vote
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.inputs import image_channels
from slimrank.compress.pruning import order
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.compress.pruning.select import OutOfReach, runtime_block, select, uniform, unscored
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.rankers.scores import FilterScores
from slimrank.errors import SlimrankError
from slimrank.evaluate.macs import count

from .reference import macs_by_hand


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = zoo.build("resnet20-cifar").eval()
    return model, channel_map(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["resnet20-cifar", "lenet5", "vgg16-cifar", "resnet18", "mobilenet_v2", "densenet121"])
def test_macs_three_ways(name):
    """Dispatched operations, the channel map's closed form, and sizes by hand."""
    model = zoo.build(name).eval()
    shape = (image_channels(model, (32, 32)), 32, 32) if name != "lenet5" else (1, 28, 28)
    counted = count(model, shape)
    channels = channel_map(model, torch.zeros(1, *shape))
    assert counted.macs == macs_by_hand(model, shape) == channels.macs(model, channels.removed({}))
    assert counted.macs == sum(layer.macs for layer in counted.layers.values())
    assert counted.params == sum(layer.params for layer in counted.layers.values())


def test_published_macs():
    assert count(zoo.build("resnet18"), (3, 224, 224)).macs == 1_814_073_344
    assert count(zoo.build("resnet20-cifar"), (3, 32, 32)).macs == 40_551_040
    paper = zoo.build("lenet5", {"widths": (5, 7, 45, 20)})
    biases = 5 * 24 * 24 + 7 * 8 * 8 + 45 + 20 + 10  # the paper counts them
    assert (count(paper, (1, 28, 28)).macs + biases, count(paper, (1, 28, 28)).params) == (137_543, 7_227)
    assert count(zoo.build("lenet5", {"widths": (5, 7, 45, 20), "padding": 2}), (1, 28, 28)).params == 17_622


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0.15, 0.9),
    scope=st.sampled_from(["layer", "global"]),
    align=st.sampled_from([1, 8, 16]),
    seed=st.integers(0, 99),
)
def test_macs_budget_is_met_and_exact(resnet, share, scope, align, seed):
    model, channels = resnet
    scores = RANKERS["random"](model, channels, seed=seed)
    plan = select(model, channels, scores, macs=share, scope=scope, align=align)
    kept = plan.macs_after / plan.macs_before
    assert 0.98 * share <= kept <= share
    smaller = apply_plan(model, channels, plan, torch.randn(1, 3, 32, 32))
    assert count(smaller, (3, 32, 32)).macs == plan.macs_after
    assert PruningPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_ratio_budget_counts_filters(resnet, ratio):
    model, channels = resnet
    plan = select(model, channels, RANKERS["l1"](model, channels), ratio=ratio)
    before, after = (sum(w[i] for w in plan.widths.values()) for i in (0, 1))
    assert abs((before - after) / before - ratio) <= 1 / before + 0.02


def test_aligned_widths(resnet):
    model, channels = resnet
    plan = select(model, channels, RANKERS["l1"](model, channels), macs=0.6, align=16)
    assert sum(width % 16 == 0 for _, width in plan.widths.values()) >= len(plan.widths) - 1
    plain = uniform(model, channels, 0.5)
    assert plain.ranker == "uniform"
    shares = [after / before for before, after in plain.widths.values()]
    assert max(shares) - min(shares) < 0.08


@pytest.mark.parametrize("gone", [1, 16, 77])
def test_of_many_filters_none_goes_beyond_what_was_asked_for(gone):
    """One of 128 is less than the two percent within which nothing is put back."""
    model = zoo.build("lenet5", {"widths": [16, 32, 48, 32], "size": 16})
    channels = channel_map(model, torch.zeros(1, 1, 16, 16))
    made = select(model, channels, RANKERS["l1"](model, channels), ratio=gone / 128)
    assert sum(len(kept) for kept in made.keep.values()) == 128 - gone


def test_the_best_filters_stay(resnet):
    model, channels = resnet
    scores = RANKERS["l1"](model, channels)
    plan = select(model, channels, scores, ratio=0.5)
    for name, keep in plan.keep.items():
        values = torch.tensor(scores.scores[name])
        lost = [i for i in range(len(values)) if i not in keep]
        assert not lost or values[keep].min() >= values[lost].max()


def test_l1_is_the_sum_over_the_tied_layers(resnet):
    model, channels = resnet
    scores = RANKERS["l1"](model, channels).scores
    layers = [n for n in channels.group("layer2.0.conv2").layers if "conv" in n]
    assert layers == ["layer2.0.conv2", "layer2.1.conv2", "layer2.2.conv2"]
    expected = sum(model.get_submodule(n).weight.detach().abs().sum((1, 2, 3)) for n in layers)
    torch.testing.assert_close(torch.tensor(scores["layer2.0.conv2"]), expected.float())


def test_influential_is_algorithm_1_at_the_classifier(resnet):
    model, channels = resnet
    x, labels = torch.randn(40, 3, 32, 32), torch.arange(40) % 10
    ranked = RANKERS["influential"](model, channels, [(x[:25], labels[:25]), (x[25:], labels[25:])], classes=10, k1=5)
    from slimrank.compress.channels.features import features

    read = list(features(model, "linear", [(x, labels)]))
    votes = vote(read, 10, 5).histogram.sum(0)
    last = torch.tensor(ranked.scores["layer3.0.conv2"])
    assert torch.equal(last.floor().long(), votes)
    assert (ranked.evaluations, ranked.images) == (1, 40)
    assert set(ranked.scores) == {g.name for g in channels.groups if g.prunable}


def test_a_dead_filter_comes_last():
    model = zoo.build("vgg16-cifar").eval()
    model.features[1].weight.data[7] = 0
    model.features[1].bias.data[7] = 0
    channels = channel_map(model, torch.randn(1, 3, 32, 32))
    ranked = RANKERS["influential"](model, channels, [(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)], classes=10)
    assert ranked.scores["features.0"][7] == 0


def test_scores_round_trip(tmp_path, resnet):
    model, channels = resnet
    scores = RANKERS["random"](model, channels, seed=3)
    scores.save(tmp_path / "s.json")
    assert FilterScores.load(tmp_path / "s.json") == scores


def test_no_part_of_a_concat_runs_empty():
    """Two convs side by side meet a sum: one group, but each conv keeps a filter, whatever the scores say."""

    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 12, 3, padding=1)
            self.left, self.right = torch.nn.Conv2d(12, 4, 1), torch.nn.Conv2d(12, 8, 1)
            self.classifier = torch.nn.Linear(12, 5)

        def forward(self, x):
            x = self.stem(x)
            return self.classifier((x + torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))

    model, x = Parts().eval(), torch.randn(2, 3, 8, 8)
    channels = channel_map(model, x[:1])
    assert channels.group("stem").layers == ("stem", "left", "right")
    worth = FilterScores(ranker="l1", scores={"stem": [float(i) for i in range(12)]})  # those of `left` are the least
    for minimum in (1, 2):
        smaller = apply_plan(model, channels, select(model, channels, worth, ratio=0.6, min_filters=minimum), x)
        assert smaller.left.out_channels == minimum
    with pytest.raises(SlimrankError, match="leaves left without channels"):
        apply_plan(model, channels, PruningPlan({"stem": list(range(4, 12))}, 0, 0, {}, "layer", "l1"), x)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"ratio": 0}, "between 0 and 1"),
        ({"ratio": 1.5}, "`ratio` is 1.5, must lie strictly between 0 and 1"),
        ({"macs": -0.1}, "between 0 and 1"),
        ({"macs": 1}, "between 0 and 1"),
        ({"macs": float("nan")}, "between 0 and 1"),
        ({}, "one budget"),
        ({"ratio": 0.5, "macs": 0.5}, "one budget"),
        ({"macs": 0.0001}, "out of reach"),
        ({"macs": 0.5, "scope": "nowhere"}, "no scope"),
        ({"macs": 0.5, "align": 0}, "`align` is 0"),
        ({"macs": 0.5, "min_filters": 0}, "`min_filters` is 0"),
    ],
    ids=str,
)
def test_bad_budgets(resnet, wrong, match):
    model, channels = resnet
    with pytest.raises(SlimrankError, match=match):
        select(model, channels, RANKERS["l1"](model, channels), **wrong)


def test_scores_of_another_network_are_refused(resnet):
    model, channels = resnet
    other = FilterScores(ranker="l1", scores={"conv1": [1.0, 2.0]})
    with pytest.raises(SlimrankError, match="rank this checkpoint"):
        select(model, channels, other, macs=0.5)


def test_scores_of_other_layers_are_named_up_to_three(lenet):
    model, channels, _ = lenet
    other = FilterScores(ranker="l1", scores={name: [1.0] for name in "abcd"})
    with pytest.raises(SlimrankError, match=r"the scores are of other layers \(a, b, c\) than this checkpoint can lose"):
        select(model, channels, other, macs=0.5)


def test_scores_in_one_unit_are_taken_per_mac(resnet):
    """The least accuracy for the most MACs goes first; without `comparable` every layer is put on one scale."""
    model, channels = resnet
    names = channels.chosen(None)
    worth = {n: [0.01] * channels.group(n).units for n in names}
    worth["layer3.1.conv1"] = [0.0] * 64
    plan = select(model, channels, FilterScores(ranker="car", scores=worth, comparable=True), macs=0.88, scope="global")
    cut = {n: a - b for n, (a, b) in plan.widths.items() if a != b}
    assert cut["layer3.1.conv1"] == 64 - 6  # worth nothing: down to a tenth
    others = [n for n in cut if n != "layer3.1.conv1"]
    assert others == ["conv1"]  # then, at equal worth, where a unit has most MACs
    plan = select(model, channels, FilterScores(ranker="x", scores=worth), macs=0.88, scope="global")
    assert plan.widths["layer3.1.conv1"][1] == 6


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_comparable_scores_go_by_what_a_unit_saves_in_the_network_as_it_is_by_then(budget, monkeypatch):
    monkeypatch.setattr(order, "PRICED", 10**9)  # every time
    model = zoo.build("lenet5", {"widths": [6, 8, 16, 7], "size": 16})
    channels = channel_map(model, torch.zeros(1, 1, 16, 16))
    generator = torch.Generator().manual_seed(0)
    groups = [channels.group(name) for name in channels.chosen(None)]
    worth = {g.name: torch.rand(g.units, generator=generator).sort().values.tolist() for g in groups}
    scores = FilterScores(ranker="car", scores=worth, comparable=True)

    def cost(gone):
        return channels.macs(model, gone) if budget == "macs" else channels.params(model, gone)

    found = order.RemovalOrder(model, channels, scores, "global", 1, 1, cost, None).steps(groups)
    gone = channels.removed({})
    for step in found:
        prices = {}
        for g in groups:
            left = [u for u in range(g.units) if not gone[g.offset + u]]
            if len(left) > 1:
                without = gone.clone()
                without[g.offset + left[0]] = True
                prices[g.offset + left[0]] = worth[g.name][left[0]] / (cost(gone) - cost(without))
        assert int(step) == min(prices, key=lambda unit: prices[unit])
        gone[step] = True
    assert len(found) == sum(g.units - 1 for g in groups) - 1  # a tenth of 16, rounded, is 2


# -- what a budget leaves, on a network of 4, 8, 12 and 8 filters ------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet():
    torch.manual_seed(0)
    model = zoo.build("lenet5", {"widths": [4, 8, 12, 8], "size": 16}).eval()
    channels = channel_map(model, torch.zeros(1, 1, 16, 16))
    return model, channels, RANKERS["l1"](model, channels)


CURRENCIES = {
    "macs": lambda model, channels, gone: channels.macs(model, gone),
    "params": lambda model, channels, gone: channels.params(model, gone),
    "ratio": lambda model, channels, gone: 32 - int(gone.sum()),
}


@pytest.mark.parametrize("budget", CURRENCIES)
@pytest.mark.parametrize("share", [0.25, 0.35, 0.5, 0.77, 0.94])
@pytest.mark.parametrize("align", [1, 4])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_is_met_and_nothing_that_is_gone_would_still_fit(lenet, budget, share, align, scope):
    model, channels, scores = lenet
    cost = lambda gone: CURRENCIES[budget](model, channels, gone)  # noqa: E731
    made = select(model, channels, scores, **{budget: 1 - share if budget == "ratio" else share}, align=align, scope=scope)
    gone = channels.removed(made.keep)
    target = share * cost(channels.removed({})) + 1e-9
    assert cost(gone) <= target
    off = cost(gone) < 0.98 * target
    assert ("would, put back, overshoot" in made.note) is off
    for unit in gone.nonzero().flatten().tolist() if off else ():
        back = gone.clone()
        back[unit] = False
        assert cost(back) > target
    assert made.macs_after == channels.macs(model, gone)
    assert made.widths == {name: [channels.group(name).units, len(kept)] for name, kept in made.keep.items()}


@pytest.mark.parametrize("share", [0.3, 0.4, 0.6, 0.77])
def test_within_two_percent_of_the_budget_the_fewest_removals_in_order_stand(resnet, share):
    model, channels = resnet
    scores, groups = RANKERS["l1"](model, channels), [channels.group(name) for name in channels.chosen(None)]
    steps = order.RemovalOrder(model, channels, scores, "layer", 1, 1, None, None).steps(groups)
    gone = channels.removed({})
    target = share * channels.macs(model, gone)
    while channels.macs(model, gone) > target:
        gone[steps.pop(0)] = True
    assert channels.macs(model, gone) >= 0.98 * target
    assert torch.equal(channels.removed(select(model, channels, scores, macs=share).keep), gone)


def test_a_plan_says_what_it_was_asked_for_and_what_it_cuts(lenet):
    model, channels, scores = lenet
    made = select(model, channels, scores, ratio=0.5, align=4, scope="global")
    assert (made.budget, made.scope, made.ranker, made.note) == ({"ratio": 0.5, "align": 4}, "global", "l1", "")
    assert sum(len(kept) for kept in made.keep.values()) == 16
    assert made.macs_before == count(model, (1, 16, 16)).macs
    assert made.convs == ["conv1", "conv2"]


@pytest.mark.parametrize("align", [1, 2, 4])
@pytest.mark.parametrize("gone", [2, 5, 9, 14])
def test_where_filters_are_counted_as_many_go_as_were_asked_for(lenet, gone, align):
    """Blocks that overshoot are put back filter by filter until the budget is met to the last one."""
    model, channels, scores = lenet
    made = select(model, channels, scores, ratio=gone / 32, align=align)
    assert sum(len(kept) for kept in made.keep.values()) == 32 - gone


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("budget", ["macs", "params", "ratio"])
def test_the_nearest_budget_that_is_told_is_the_nearest(lenet, budget, scope):
    """It can be had, and a thousandth beyond cannot."""
    model, channels, scores = lenet
    beyond = 0.999 if budget == "ratio" else 0.001
    with pytest.raises(OutOfReach, match=f"`{budget}` {beyond} is out of reach: with .* the least is a `{budget}` of") as told:
        select(model, channels, scores, **{budget: beyond}, scope=scope)
    least = told.value.least
    assert least == round(least, 3)
    assert str(told.value).endswith(f"{'at most' if budget == 'ratio' else 'at least'} {least}")
    select(model, channels, scores, **{budget: least}, scope=scope)
    with pytest.raises(OutOfReach):
        select(model, channels, scores, **{budget: least + (0.001 if budget == "ratio" else -0.001)}, scope=scope)


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"ratio": 0.5}])
def test_where_nothing_can_be_cut_the_whole_is_told(lenet, budget):
    model, channels, scores = lenet
    with pytest.raises(OutOfReach, match=r"with 12 filters \(`min_filters`\) left .* nothing can be cut at all") as told:
        select(model, channels, scores, **budget, min_filters=12)
    assert told.value.least == 1.0


def test_what_must_stay_is_told(lenet):
    model, channels, scores = lenet
    some = FilterScores(ranker="l1", scores={"conv2": scores.scores["conv2"]})
    with pytest.raises(OutOfReach, match=r"with one filter left in each layer .* and all of conv1 \(no scores for fc1, fc2:"):
        select(model, channels, some, macs=0.01, protect=["conv1"])
    with pytest.raises(OutOfReach, match=r"with a tenth of the filters, as `scope` global keeps, and at least 2 filters \("):
        select(model, channels, scores, macs=0.01, scope="global", min_filters=2)
    with pytest.raises(OutOfReach, match="nothing to prune") as told:
        select(model, channels, scores, macs=0.5, protect=["conv1", "conv2", "fc1", "fc2"])
    assert told.value.least == 1.0


@pytest.mark.parametrize(
    ("scored", "words"),
    [
        (["conv1", "conv2", "fc1", "fc2"], ""),
        (["conv1", "conv2", "fc1"], "no scores for fc2: left whole"),
        (["conv2"], "no scores for conv1, fc1, fc2: left whole"),
        ([], "no scores for conv1, conv2, fc1 and 1 more: left whole"),
    ],
    ids=["all", "three", "one", "none"],
)
def test_layers_without_scores_are_named_up_to_three(lenet, scored, words):
    _, channels, scores = lenet
    some = FilterScores(ranker="l1", scores={name: scores.scores[name] for name in scored})
    assert unscored(channels, some, set()) == words


@pytest.mark.parametrize(("capability", "block"), [("AVX512", 16), ("AVX512_VNNI", 16), ("AVX2", 8), ("DEFAULT", 8)])
def test_the_block_of_the_runtime_is_that_of_its_vectors(monkeypatch, capability, block):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert runtime_block() == block
