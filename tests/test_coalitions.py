"""The engine against the naive way: mask by hook, full forward, one coalition at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions import activations, powerset, suffix
from slimrank.compress.coalitions.game import Coalitions, Played
from slimrank.compress.coalitions.powerset import bits, power_set
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

from .reference import hits, naive_logits


@pytest.fixture(scope="module")
def real(resnet20, cifar):
    """resnet20 in float64 with 24 test images: model, channels, batches, images, labels."""
    checkpoint = load(resnet20, model="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing, validation="test:0.5", limit=24)
    x, y = next(iter(data.split("validation").batches(24)))
    model = checkpoint.model.double().eval()
    return model, channel_map(model, checkpoint.example().double()), [(x[:10].double(), y[:10]), (x[10:].double(), y[10:])], y


def same(game, model, channels, layer, batches, masks, **options):
    """Counts by class equal to the last image, log-likelihood to nine digits."""
    images = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    found = game.play(masks, likelihood=True, **options)
    for row, mask in enumerate(masks):
        logits = naive_logits(model, channels, layer, mask, images)
        expected = torch.bincount(labels[logits.argmax(1) == labels], minlength=game.classes)
        assert found.by_class[row].tolist() == expected.tolist(), (layer, row)
        likelihood = float(logits.log_softmax(1).gather(1, labels[:, None]).sum())
        assert float(found.likelihood[row]) == pytest.approx(likelihood, rel=1e-9)
    return found


@pytest.mark.parametrize("layer", ["conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.2.conv1", "linear"])
@pytest.mark.parametrize("memory", [2**30, 2**19, 0])
def test_counts_are_those_of_the_naive_way(real, layer, memory):
    model, channels, batches, _ = real
    game = Coalitions(model, channels, layer, batches, classes=10, dtype=torch.float64, memory=memory)
    assert not game.split.whole
    if memory != 2**19:  # holds some layers' activations and some others' not
        assert game.activations.complete == (memory > 0)
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(3, game.n, generator=generator) < torch.tensor([[0.9], [0.6], [0.3]])
    same(game, model, channels, layer, batches, masks)
    base = torch.rand(game.n, generator=generator) < 0.8
    less = base.repeat(3, 1)
    for row, unit in enumerate(base.nonzero().flatten()[:3].tolist()):
        less[row, unit] = False
    for _ in range(2):  # the second time with every unit's part at hand, if the memory allows
        same(game, model, channels, layer, batches, less, base=base)
    order = torch.randperm(game.n, generator=generator)
    chain = order.argsort()[None] < torch.arange(1, game.n, game.n // 3)[:, None]
    same(game, model, channels, layer, batches, chain)


def test_a_chain_of_many_coalitions_does_not_drift(real):
    model, channels, batches, labels = real
    game = Coalitions(model, channels, "layer3.2.conv1", batches, classes=10)
    codes = torch.arange(600)
    masks = torch.cat([bits(codes ^ (codes >> 1), 10), torch.ones(600, game.n - 10, dtype=torch.bool)], 1)
    game.play(masks)
    found = game.play(masks, likelihood=True)
    for row in (255, 256, 599):
        logits = naive_logits(model, channels, "layer3.2.conv1", masks[row], torch.cat([x for x, _ in batches]))
        expected = float(logits.log_softmax(1).gather(1, labels[:, None]).sum())
        assert float(found.likelihood[row]) == pytest.approx(expected, rel=1e-4)


def test_hard_first_and_floor_change_no_count(real):
    model, channels, batches, _ = real
    game = Coalitions(model, channels, "layer3.0.conv1", batches, classes=10, dtype=torch.float64, hard_first=True)
    game.activations.rows = 7
    game.activations.hard_first()  # in chunks of seven images
    everyone = torch.ones(game.n, dtype=torch.bool)
    plain = game.without_each(everyone, list(range(game.n)))
    best = int(plain.correct.max())
    passes = game.passes
    floored = game.without_each(everyone, list(range(game.n)), floor=best)
    kept = ~floored.dropped
    assert kept.any()
    assert floored.dropped.any()
    assert torch.equal(floored.correct[kept], plain.correct[kept])
    assert bool((floored.correct[kept] == best).all())
    assert bool((plain.correct[floored.dropped] < best).all())
    assert bool((floored.reach >= plain.correct).all())
    assert game.passes - passes < passes


def test_splitting_leaves_the_model_alone(real):
    model, channels, batches, _ = real
    before = {k: v.clone() for k, v in model.state_dict().items()}
    game = Coalitions(model, channels, "layer1.0.conv1", batches, classes=10)
    game.play(torch.rand(4, game.n) < 0.5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in game.split.after.parameters())


# -- memory, chunks and counters, on a network small enough to know every number ------------------------------------------

IMAGE, PART = 4 * 4 * 4 * 8, 4 * 5 * 2 * 2 * 8  # bytes an image: what crosses over, and what four units add behind it


@pytest.fixture
def small(monkeypatch):
    """Game of the four filters of a first conv, on 30 images in chunks of eight: fn(memory, ...)."""
    monkeypatch.setattr(activations, "CHUNK_BYTES", 1)
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3), torch.nn.ReLU(), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(20, 3)).double()
    x, labels = torch.randn(30, 1, 6, 6, dtype=torch.float64), torch.arange(30) % 3
    channels = channel_map(model, x[:1])
    batches = [*zip(x.split([1, 13, 16]), labels.split([1, 13, 16]), strict=True)]

    def game(memory=2**30, batches=batches, **options):
        return Coalitions(model, channels, "0", batches, classes=3, memory=memory, dtype=torch.float64, **options)

    game.model, game.channels, game.batches, game.labels = model, channels, batches, labels
    return game


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_images_that_do_not_fit_the_memory_are_run_again(small, kept):
    game = small(IMAGE * min(8 * kept, 30))
    whole = list(small().chunks())
    for _ in range(2):
        chunks = list(game.chunks())
        assert [len(chunk) for chunk in chunks] == [8, 8, 8, 6]
        assert [chunk.kept for chunk in chunks] == [True] * kept + [False] * (4 - kept)
        assert torch.equal(torch.cat([chunk.labels for chunk in chunks]), small.labels)
        for chunk, expected in zip(chunks, whole, strict=True):
            torch.testing.assert_close(chunk.crossing, expected.crossing)
    assert game.activations.complete is (kept == 4)
    assert game.class_images.tolist() == [10, 10, 10]
    same(game, small.model, small.channels, "0", small.batches, bits(torch.arange(16), 4))


@pytest.mark.parametrize(("cache", "rows"), [(1, 8), (20 * IMAGE + 1, 20), (2**30, 4096)])
@pytest.mark.parametrize("first", [1, 7, 30])
def test_chunks_fit_the_cache(small, monkeypatch, cache, rows, first):
    monkeypatch.setattr(activations, "CHUNK_BYTES", cache)
    images, labels = (torch.cat(parts) for parts in zip(*small.batches, strict=True))
    batches = zip(images.split(first), labels.split(first), strict=True)
    assert small(batches=[*batches]).activations.rows == rows


def test_a_chunk_may_lack_a_class(small):
    images = torch.cat([images for images, _ in small.batches])
    labels = torch.arange(30) // 10
    game = small(batches=[(images, labels)])
    assert game.class_images.tolist() == [10, 10, 10]
    same(game, small.model, small.channels, "0", [(images, labels)], bits(torch.arange(16), 4))


@pytest.mark.parametrize(("cache", "together"), [(1, [1] * 5), (2 * 8 * PART // 4, [2, 2, 1]), (2**30, [5])])
def test_coalitions_whose_layers_behind_fit_the_cache_run_together(small, monkeypatch, cache, together):
    monkeypatch.setattr(suffix, "CHUNK_BYTES", cache)
    game = small()
    parts = list(game.suffix.logits(next(game.chunks()), bits(torch.arange(5), 4), None, repeated=False))
    assert [tuple(part.shape) for part in parts] == [(n, 8, 3) for n in together]


def test_near_a_base_units_that_are_silent_on_some_images_and_those_that_are_not_keep_their_order(small):
    """Filters 1 and 3 are active on half of the images and run on these alone; the others run together."""
    conv = small.model[0]
    images = torch.cat([images for images, _ in small.batches])
    with torch.no_grad():
        largest = conv(images).flatten(2).amax(2)
        conv.bias[[1, 3]] -= largest.median(0).values[[1, 3]]
        active = (conv(images).flatten(2).amax(2) > 0).sum(0).tolist()
    assert active[1::2] == [15, 15]
    game = small()
    base = torch.ones(4, dtype=torch.bool)
    near = ~torch.eye(4, dtype=torch.bool)[[0, 1, 2, 3, 0, 0, 1, 1, 2]]
    for _ in range(2):
        passes = game.passes
        same(game, small.model, small.channels, "0", small.batches, near, base=base)
        assert game.passes - passes == sum(30 if unit % 2 == 0 else 15 for unit in (0, 1, 2, 3, 0, 0, 1, 1, 2))


@pytest.mark.parametrize(("memory", "parts"), [(0, 0), (30 * IMAGE + 24 * PART, 3), (30 * (IMAGE + PART), 4)])
def test_what_units_add_is_kept_while_memory_lasts(small, memory, parts):
    """Whatever is kept, a chain and what lies near a base are counted as they are the naive way."""
    game = small(memory)
    base = torch.tensor([True, True, False, True])
    near = torch.tensor([[False, True, False, True], [True, True, False, True], [True, True, True, True]])
    for _ in range(2):
        same(game, small.model, small.channels, "0", small.batches, bits(torch.arange(16), 4))
        same(game, small.model, small.channels, "0", small.batches, near, base=base)
    assert [chunk.contributions is not None for chunk in game.chunks()] == [True] * parts + [False] * (4 - parts)


@pytest.mark.parametrize(("memory", "is_sorted"), [(30 * IMAGE, False), (60 * IMAGE - 1, False), (60 * IMAGE, True)])
def test_images_that_decide_come_first_where_memory_has_room_to_sort(small, memory, is_sorted):
    game = small(memory, hard_first=True)
    logits = torch.cat([small.model(x) for x, _ in small.batches]).detach()
    own = logits.gather(1, small.labels[:, None])
    margins = (own - logits.scatter(1, small.labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
    order = margins.argsort() if is_sorted else torch.arange(30)
    assert torch.equal(torch.cat([chunk.labels for chunk in game.chunks()]), small.labels[order])
    crossing = torch.cat([chunk.crossing[0] for chunk in game.chunks()])
    torch.testing.assert_close(game.split.after(crossing), logits[order])
    assert [(len(chunk), chunk.kept) for chunk in game.chunks()] == [(8, True), (8, True), (8, True), (6, True)]


@pytest.mark.parametrize("below", [-1, 0, 1, 40])
def test_a_coalition_is_dropped_when_it_cannot_reach_the_floor(small, below):
    masks = bits(torch.arange(16), 4)
    plain = small().play(masks)
    floor = int(plain.correct.max()) + below
    game = small()
    found = game.play(masks, floor=floor)
    assert torch.equal(found.dropped, plain.correct < floor)
    assert torch.equal(found.correct[~found.dropped], plain.correct[~found.dropped])
    assert torch.equal(found.reach[~found.dropped], plain.correct[~found.dropped])
    assert bool((found.reach >= plain.correct).all())
    assert bool((found.reach[found.dropped] < floor).all())
    assert game.passes == 16 * (8 if below == 40 else 30)  # out of reach after the first chunk, or in the last
    assert not plain.dropped.any()
    assert plain.likelihood is None


def test_evaluations_count_coalitions_and_passes_what_was_run(small):
    game = small()
    game.play(bits(torch.arange(16), 4))
    assert (game.evaluations, game.passes, game.images, game.n) == (16, 16 * 30, 30, 4)
    assert game.without_each(torch.ones(4, dtype=torch.bool), [0, 2]).likelihood is None
    assert (game.evaluations, game.notes) == (18, [])
    assert game.without_each(torch.ones(4, dtype=torch.bool), []).correct.tolist() == []
    assert game.passes <= 18 * 30
    assert game.played == Played(evaluations=18, images=30, passes=game.passes)


def test_images_of_one_class_are_refused_by_its_number(small):
    images = torch.cat([images for images, _ in small.batches])
    with pytest.raises(SlimrankError, match=r"all images \(30\) are of class 2"):
        small(batches=[(images, torch.full((30,), 2))])


def test_games_add_up():
    one, two = (Played(evaluations=n, images=30, passes=20 * n, notes=(f"note {n}",)) for n in (1, 2))
    assert Played.sum([one, two]) == Played(evaluations=3, images=30, passes=60, notes=("note 1", "note 2"))
    assert Played.sum([]) == Played()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 7), st.integers(2, 5), st.sampled_from(["a bias", "zeros", "none"]), st.integers(0, 10**6))
def test_power_set_of_features(n, classes, bias, seed):
    """Tables of half sums == one coalition at a time; ties (no features, no bias) go to the first class."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, n, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(n, classes, bias=bias != "none"),
    ).double()
    if bias == "zeros":
        torch.nn.init.zeros_(model[4].bias)
    x = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    labels = torch.arange(20) % classes
    channels = channel_map(model, x[:1])
    game = Coalitions(model, channels, "0", [(x, labels)], classes=classes, dtype=torch.float64)
    assert game.split.logits
    game.play(torch.ones(1, n))
    counts = power_set(game)
    assert (game.evaluations, game.passes) == (1 + 2**n, 20 + 2**n * 20)
    for code, count in enumerate(counts.tolist()):
        mask = bits(torch.tensor([code]), n)[0]
        assert count == int(hits(model, channels, "0", mask, x, labels).sum()), code


@pytest.mark.parametrize("block", [1, 100, 2**30])
def test_power_set_of_features_in_tables_of_any_size(monkeypatch, block):
    monkeypatch.setattr(powerset, "BLOCK", block)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).double()
    x, labels = torch.randn(12, 1, 3, 3, dtype=torch.float64), torch.arange(12) % 3
    channels = channel_map(model, x[:1])
    counts = power_set(Coalitions(model, channels, "3", [(x, labels)], classes=3, dtype=torch.float64))
    assert counts.tolist() == [int(hits(model, channels, "3", m, x, labels).sum()) for m in bits(torch.arange(32), 5)]


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc2"])
def test_power_set_behind_hidden_layers(layer):
    torch.manual_seed(0)
    model = zoo.build("lenet5", {"widths": [5, 4, 12, 6]}).double()
    x = torch.randn(30, 1, 28, 28, dtype=torch.float64)
    labels = torch.arange(30) % 10
    channels = channel_map(model, x[:1])
    game = Coalitions(model, channels, layer, [(x, labels)], classes=10, dtype=torch.float64)
    counts = power_set(game)
    assert game.evaluations == 2**game.n
    masks = bits(torch.arange(2**game.n), game.n)
    assert counts.tolist() == [int(hits(model, channels, layer, mask, x, labels).sum()) for mask in masks]


@pytest.mark.parametrize("most", [3, 4])
def test_the_power_set_has_a_most(small, monkeypatch, most):
    monkeypatch.setattr(powerset, "POWER_SET", most)
    if most == 4:
        assert len(power_set(small())) == 16
    else:
        with pytest.raises(SlimrankError, match=r"power set of 4 filters .* 3 filters are the most"):
            power_set(small())


def test_the_power_set_of_a_wide_layer_is_refused(real):
    model, channels, batches, _ = real
    game = Coalitions(model, channels, "layer2.0.conv1", batches, classes=10)
    with pytest.raises(SlimrankError, match=r"power set of 32 filters .* `estimator` permutation \(62 coalitions a sample\)"):
        power_set(game)


@pytest.mark.parametrize(("layer", "arguments", "message"), [
    ("conv1", {"batches": []}, "no images to score filters on; check `data` and `limit`"),
    ("conv1", {"labels": torch.full((10,), 2)}, r"all images \(10\) are of class 2"),
    ("conv1", {"labels": torch.arange(10) + 1}, "label 10 in the data, the model has 10 classes"),
    ("conv1", {"classes": 12}, "10 outputs, the data 12 classes"),
    ("conv1", {"memory": -1}, "`memory` is -1, must be 0 bytes or more"),
    ("layer9", {}, "near ones"),
], ids=["no images", "one class", "label too large", "other classes", "memory", "layer"])  # fmt: skip
def test_bad_games(real, layer, arguments, message):
    model, channels, batches, _ = real
    if "labels" in arguments:
        arguments = {"batches": [(batches[0][0], arguments["labels"])]}
    with pytest.raises(SlimrankError, match=message):
        Coalitions(model, channels, layer, **{"batches": batches[:1], "classes": 10, **arguments})
