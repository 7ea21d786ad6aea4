"""Algorithm 1 and the subspace head, to the last digit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.compress.channels.features import Cached, Coverage, Moments, Votes, cached, features, survey, vote
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.head.cluster import Subspaces, assigned, cocluster
from slimrank.compress.head.fit import assemble, refitted, top1, trained, truncated
from slimrank.compress.head.fold import fold
from slimrank.compress.head.install import with_head
from slimrank.compress.head.options import SELECTS
from slimrank.compress.head.select import centred, choose_features, pursuit, saliency
from slimrank.compress.head.two_level import confusable, mean_scores, trained_scores
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.compress.network.layout_names import LAYOUTS
from slimrank.compress.network.subspace import SubspaceLinear, sizes
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

from .reference import algorithm_1, orthogonal_pursuit
from .toy_models import decomposed, lively


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_votes_are_algorithm_1(seed, m, k1, k2, coarse):
    """Against the line-by-line version, ties included (coarse features tie often)."""
    k1, k2 = min(k1, m), min(k2, m)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(23, m, generator=generator)
    x = x.round() if coarse else x
    labels = torch.randint(0, 3, (23,), generator=generator)
    labels[:3] = torch.arange(3)
    votes = vote([(x[:10], labels[:10]), (x[10:], labels[10:])], 3, k1)
    assert votes.choose(k2).tolist() == algorithm_1(x, labels, 3, k1, k2)
    assert votes.histogram.sum(1).tolist() == (k1 * torch.bincount(labels, minlength=3)).tolist()
    order = torch.randperm(23, generator=generator)
    assert torch.equal(vote([(x[order], labels[order])], 3, k1).histogram, votes.histogram)
    assert torch.equal(vote([(4 * x, labels)], 3, k1).choose(k2), votes.choose(k2))


def test_a_class_without_images_takes_what_all_vote_for():
    x = torch.tensor([[3.0, 0, 1, 0], [3.0, 0, 0, 1]])
    votes = vote([(x, torch.tensor([0, 2]))], 3, 1)
    assert votes.choose(1)[1].tolist() == [0]


def test_coverage_is_the_least_k_that_carries_the_share():
    coverage = Coverage()
    coverage.add(torch.tensor([[4.0, 3, 2, 1]]))
    coverage.add(torch.tensor([[1.0, -4, 3, 2]]))
    assert [coverage.least(share) for share in (0.3, 0.4, 0.7, 0.9, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_moments_stream():
    x = torch.randn(300, 7, dtype=torch.float64) * 3 + 100
    moments = Moments()
    for part in x.split(70):
        moments.add(part)
    torch.testing.assert_close(moments.mean, x.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(x.T, correction=0), rtol=1e-9, atol=1e-9)


def example(classes: int = 12, m: int = 32, n: int = 400):
    """Correlated features, a dense layer, their moments."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(m, m, generator=generator, dtype=torch.float64)
    x = (torch.randn(n, m, generator=generator, dtype=torch.float64) @ mix).relu()
    weight, bias = torch.randn(classes, m, generator=generator), torch.randn(classes, generator=generator)
    moments = Moments()
    moments.add(x)
    return x, weight, bias, moments


SPACES = {  # groups of every kind: single classes, tiles, uneven groups, features to be reordered, all features
    "a class alone": lambda weight, moments: Subspaces(choose_features("omp", weight, moments, None, 8)),
    "tiles": lambda weight, moments: cocluster(saliency(weight, moments), 3, 4, 8),
    "uneven groups": lambda weight, moments: cocluster(saliency(weight, moments), 5, 2, 6),
    "adjacent": lambda weight, moments: cocluster(saliency(weight, moments), 4, 4, 8, adjacent=True),
    "everything": lambda weight, moments: Subspaces(torch.arange(32).expand(12, 32)),
}
every_kind = pytest.mark.parametrize("kind", SPACES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def head_of(kind: str, layout: str, rescore: int = 0) -> SubspaceLinear:
    _x, weight, bias, moments = example()
    spaces = SPACES[kind](weight, moments)
    return assemble(*truncated(weight, bias, spaces), spaces, 32, layout, full=(weight, bias), rescore=rescore)


@every_kind
@every_layout
@torch.no_grad()
def test_every_layout_is_the_dense_layer_with_zeros(kind, layout):
    x, weight, bias, _ = example()
    head = head_of(kind, layout)
    mask = torch.zeros(12, 32).scatter_(1, head_of(kind, "dense").indices(), 1.0)
    torch.testing.assert_close(head(x.float()), F.linear(x.float(), weight * mask, bias), rtol=1e-4, atol=1e-3)
    assert head.macs(()) == (384 if layout == "dense" else head.weight.numel())
    assert (kind != "everything") or bool(mask.all())


def test_tiles_are_found_again_and_groups_share_their_features():
    head = head_of("tiles", "tiled")
    assert head.tile == 4
    assert len({tuple(row) for row in head.indices().tolist()}) == 3


def test_adjacent_classes_stay_in_their_order():
    head = head_of("adjacent", "tiled")
    assert head.order is None
    assert len({tuple(row) for row in head.indices()[:3].tolist()}) == 1


@every_kind
@every_layout
@torch.no_grad()
def test_rescoring_every_class_is_the_dense_layer(kind, layout):
    x, weight, bias, _ = example()
    head = head_of(kind, layout, rescore=12)
    torch.testing.assert_close(head(x.float()), F.linear(x.float(), weight, bias), rtol=1e-4, atol=1e-3)


@every_kind
@torch.no_grad()
def test_rescoring_some_classes_is_the_shortlist(kind):
    x, weight, bias, _ = example()
    before, exact = head_of(kind, "tiled")(x.float()), F.linear(x.float(), weight, bias)
    best = before.topk(3, 1).indices
    head = head_of(kind, "tiled", rescore=3)
    torch.testing.assert_close(head(x.float()), before.scatter(1, best, exact.gather(1, best)), rtol=1e-4, atol=1e-3)
    assert head.macs(()) == head.weight.numel() + 3 * 32


@pytest.mark.parametrize("groups", [4, 5, 12])  # 5 do not divide 12 classes; of 12 groups a class is alone
@torch.no_grad()
def test_two_levels_compute_the_best_groups_only(groups):
    """All groups probed: the tiled head. Fewer: its logits in the groups with the best coarse scores, elsewhere less."""
    generator = torch.Generator().manual_seed(2)
    _, weight, bias, moments = example()
    x = torch.randn(50, 32, generator=generator)
    order = confusable(weight, moments.covariance, groups)
    scores = mean_scores(weight, bias, order, groups)
    spaces = cocluster(saliency(weight, moments), groups, 4, 8, order=order)
    fitted, full = truncated(weight, bias, spaces), (weight, bias)
    whole = assemble(*fitted, spaces, 32, "tiled")(x)
    every = assemble(*fitted, spaces, 32, "tiled", coarse=scores, probe=groups).eval()
    torch.testing.assert_close(every(x), whole, rtol=1e-4, atol=1e-4)
    head = assemble(*fitted, spaces, 32, "tiled", coarse=scores, probe=2).eval()
    best = F.linear(x, *scores).topk(2, 1).indices
    group_of_class = torch.empty(12, dtype=torch.long)
    group_of_class[order] = torch.arange(groups).repeat_interleave(torch.tensor(sizes(12, groups)))
    computed = (group_of_class[None, :, None] == best[:, None, :]).any(2)
    least = whole.masked_fill(~computed, torch.inf).amin(1, keepdim=True)
    torch.testing.assert_close(head(x), torch.where(computed, whole, least - 1), rtol=1e-4, atol=1e-4)
    assert head.macs(()) == groups * 32 + 2 * -(-12 // groups) * 8
    count = min(3, 2 * (12 // groups))
    again = assemble(*fitted, spaces, 32, "tiled", coarse=scores, probe=2, full=full, rescore=count).eval()
    chosen = whole.masked_fill(~computed, -torch.inf).topk(count, 1).indices
    expected = whole.scatter(1, chosen, F.linear(x, *full).gather(1, chosen))
    least = torch.minimum(least, expected.masked_fill(~computed, torch.inf).amin(1, keepdim=True))
    expected = torch.where(computed, expected, least - 1)
    torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.train()(x), whole, rtol=1e-4, atol=1e-4)
    keep = torch.rand(32, generator=generator) < 0.6
    masked = head.eval()(x * keep)
    head.slice_channels(keep, torch.ones(12, dtype=torch.bool))
    torch.testing.assert_close(head(x[:, keep]), masked, rtol=1e-4, atol=1e-4)


def test_classes_that_are_confused_share_a_group_and_training_finds_it_more_often():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(6, 40, generator=generator)
    weight = kinds.repeat(5, 1) + 0.3 * torch.randn(30, 40, generator=generator)  # class c is of kind c % 6
    bias = torch.zeros(30)
    x = torch.randn(4000, 40, generator=generator).relu()
    moments = Moments()
    moments.add(x)
    order = confusable(weight, moments.covariance, 6)
    assert all(len({int(c) % 6 for c in part}) == 1 for part in order.split(5))
    images = Cached(x[:3000], torch.zeros(3000, dtype=torch.long))
    spread = torch.randperm(30, generator=generator)  # groups that mean nothing are hard to find by their mean
    dense = F.linear(x[3000:], weight, bias).argmax(1)
    found = []
    for scores in (mean_scores(weight, bias, spread, 6), trained_scores(weight, bias, spread, 6, images)):
        group = spread.argsort() // 5
        found.append(float((F.linear(x[3000:], *scores).argmax(1) == group[dense]).double().mean()))
    assert found[0] < found[1]


@every_kind
def test_refit_solves_the_normal_equations(kind):
    """The residual of the centred logits is uncorrelated with every kept feature, and has mean zero."""
    x, weight, bias, moments = example()
    target = centred(weight, bias)
    spaces = SPACES[kind](weight, moments)
    fitted, constant = refitted(*target, moments, spaces)
    head = assemble(fitted, constant, spaces, 32, "dense").double()
    residual = F.linear(x, target[0].double(), target[1].double()) - head(x).detach()
    assert float(residual.mean(0).abs().max()) < 1e-4
    centre = x - x.mean(0)
    for y, row in enumerate(head.indices()):
        against = centre[:, row].T @ residual[:, y] / len(x)
        assert float(against.abs().max()) < 1e-4 * float(x.std()) * float(target[0].norm())


def test_pursuit_is_the_slow_one():
    x, weight, _bias, moments = example(4, 12)
    slow = [orthogonal_pursuit(x, (weight - weight.mean(0))[y].double(), 5) for y in range(4)]
    assert pursuit(weight - weight.mean(0), moments.covariance, 5).tolist() == slow


def test_pursuit_finds_a_sparse_layer():
    _x, weight, _bias, moments = example()
    index = torch.rand(12, 32).topk(4, 1).indices
    sparse = torch.zeros_like(weight).scatter_(1, index, 1.0)
    assert torch.equal(pursuit(sparse, moments.covariance, 4), index.sort(1).values)


@pytest.mark.parametrize("select", SELECTS)
def test_every_choice_has_k_features(select):
    x, weight, _bias, moments = example()
    votes = Votes(12, 4)
    votes.add(x, torch.arange(len(x)) % 12)
    rows = choose_features(select, weight, moments, votes, 6)
    assert rows.shape == (12, 6)
    assert bool((rows.diff(dim=1) > 0).all())


@pytest.mark.parametrize("k", [6, 32])
def test_dead_and_doubled_features_do_no_harm(k):
    x, weight, bias, _ = example()
    x[:, 5] = 0
    x[:, 7] = x[:, 6]
    moments = Moments()
    moments.add(x[:20])
    spaces = Subspaces(choose_features("omp", weight, moments, None, k))
    fitted, constant = refitted(*centred(weight, bias), moments, spaces)
    assert bool(torch.isfinite(fitted).all())
    assert bool(torch.isfinite(constant).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 6))
def test_assignments_are_balanced_and_the_greedy_one_is_near_the_optimum(seed, items, bins):
    from slimrank.compress.head import cluster as tiling
    from slimrank.compress.network.subspace import sizes

    value = torch.rand(items, bins, generator=torch.Generator().manual_seed(seed))
    room = torch.tensor(sizes(items, bins))
    exact = assigned(value, room)
    limit, tiling.HUNGARIAN_LIMIT = tiling.HUNGARIAN_LIMIT, 0
    try:
        greedy = assigned(value, room)
    finally:
        tiling.HUNGARIAN_LIMIT = limit
    for found in (exact, greedy):
        assert torch.bincount(found, minlength=bins).tolist() == room.tolist()
    totals = [float(value.gather(1, found[:, None]).sum()) for found in (exact, greedy)]
    assert totals[1] <= totals[0] + 1e-5
    assert totals[1] >= 0.7 * totals[0]


def test_coclustering_finds_blocks_that_are_there():
    generator = torch.Generator().manual_seed(0)
    block = torch.arange(4).repeat_interleave(6)[torch.randperm(24, generator=generator)]
    place = torch.arange(4).repeat_interleave(8)[torch.randperm(32, generator=generator)]
    worth = (block[:, None] == place).float() + 0.01 * torch.rand(24, 32, generator=generator)
    found = cocluster(worth, 4, 4, 8)
    assert found.captured > 0.95
    head = assemble(*truncated(worth, torch.zeros(24), found), found, 32, "tiled")
    assert bool((place[head.indices()] == block[:, None]).all())


@pytest.mark.parametrize("name", ["resnet20-cifar", "mobilenet_v2", "vgg11", "regnet_y_400mf", "googlenet"])
def test_folding_the_order_of_features_changes_no_logit(name):
    torch.manual_seed(0)
    size = 32 if name == "resnet20-cifar" else 64
    x = torch.randn(2, 3, size, size)
    model = lively(zoo.build(name, {"num_classes": 20} if name != "resnet20-cifar" else {}), x).double().eval()
    x = x.double()
    channels = channel_map(model, x[:1])
    dense = model.get_submodule(channels.classifier)
    order = torch.randperm(dense.in_features)
    moved = fold(model, channels, channels.classifier, x, order)
    if name == "googlenet":  # a concat of four branches: its order is not free
        assert moved is None
        return
    head = nn.Linear(dense.in_features, dense.out_features).double()
    head.weight.data, head.bias.data = dense.weight.data[:, order], dense.bias.data
    with torch.no_grad():
        torch.testing.assert_close(with_head(moved, channels.classifier, head)(x), model(x), rtol=1e-9, atol=1e-9)


@every_kind
@every_layout
@torch.no_grad()
def test_cutting_features_is_masking_them(kind, layout):
    x = example()[0].float()
    head = head_of(kind, layout)
    keep = torch.rand(32, generator=torch.Generator().manual_seed(3)) < 0.6
    expected = head(x * keep)
    head.slice_channels(keep, torch.ones(12, dtype=torch.bool))
    torch.testing.assert_close(head(x[:, keep]), expected, rtol=1e-4, atol=1e-3)


def test_a_specialised_network_can_be_pruned():
    from slimrank.compress.channels.masking import masked
    from slimrank.compress.pruning.surgery import cut

    torch.manual_seed(0)
    model = zoo.build("resnet20-cifar").double().eval()
    index = torch.stack([torch.randperm(64)[:5].sort().values for _ in range(10)])
    model.linear = decomposed(model.linear, index)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    assert channels.classifier == "linear"
    gone = channels.removed({})
    gone[torch.tensor([3, 11, 40]) + channels.group("layer3.0.conv2").offset] = True
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(x)
    torch.testing.assert_close(cut(model, channels, gone)(x), expected, rtol=1e-9, atol=1e-9)


def test_bad_heads_are_refused():
    with pytest.raises(SlimrankError, match=r"0\.\.3"):
        SubspaceLinear(torch.zeros(2, 1), torch.tensor([[0], [4]]), torch.zeros(2), 4)
    with pytest.raises(SlimrankError, match="2 classes"):
        SubspaceLinear(torch.zeros(2, 1), torch.tensor([[0], [3]]), torch.zeros(2), 4, rescore=3)
    with pytest.raises(SlimrankError, match="coarse scores"):
        SubspaceLinear(torch.zeros(2, 1), torch.tensor([[0], [3]]), torch.zeros(2), 4, "tiled", probe=1)
    with pytest.raises(SlimrankError, match="2 groups"):
        SubspaceLinear(torch.zeros(2, 1), torch.tensor([[0], [3]]), torch.zeros(2), 4, "tiled", probe=3)
    with pytest.raises(SlimrankError, match="do not divide"):
        cocluster(torch.rand(10, 30), 2, 4, 8)
    with pytest.raises(SlimrankError, match="10 classes"):
        cocluster(torch.rand(10, 32), 11, 4, 8)


def test_the_methods_on_cifar10_jpeg(resnet20, cifar):
    """algorithms.md, on all images: dense 81.03, k1=k2=5 75.23, 10 79.70; refit with omp 78.3 (5,000 and 2,500 here)."""
    checkpoint = load(resnet20, model="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing)
    channels = channel_map(checkpoint.model, checkpoint.example())
    some = data.train.subset(torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:5000])
    read = lambda images: cached(features(checkpoint.model, channels.classifier, images.batches()))  # noqa: E731
    train, test = read(some), read(data.test.subset(torch.arange(0, 10_000, 4)))
    moments, votes = Moments(), {5: Votes(10, 5), 10: Votes(10, 10)}
    survey([(train.x, train.labels)], moments.add, votes[5].add, votes[10].add)
    weight, bias = checkpoint.model.linear.weight.detach(), checkpoint.model.linear.bias.detach()
    found = {}
    for k in (5, 10):
        spaces = Subspaces(votes[k].choose(k))
        found[k] = top1(assemble(*truncated(weight, bias, spaces), spaces, 64, "gather"), test)
    spaces = Subspaces(choose_features("omp", weight, moments, None, 5))
    head = assemble(*refitted(*centred(weight, bias), moments, spaces), spaces, 64, "dense")
    found["refit"] = top1(head, test)
    half = Cached(test.x[::2], test.labels[::2])
    made, told = trained(head, centred(weight, bias), train, half, epochs=5)
    assert torch.equal(made.index, head.index)
    assert told.top1_after >= told.top1_before
    for name, published in ((5, 0.7523), (10, 0.7970), ("refit", 0.783)):
        assert abs(found[name] - published) < 0.025  # 2,500 images: one standard error is 0.9 points
    assert found[5] < found["refit"]
