"""Screening in bfloat16 changes no count."""

import pytest
import torch
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions import fused, screen
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.network.checkpoint import load
from slimrank.compress.rankers import RANKERS, car
from slimrank.evaluate.data import open_data


class Residual(nn.Module):
    """A stem that several layers read, a block, and a head; `cast`: a forward pass that bfloat16 cannot go through."""

    def __init__(self, cast: bool = False):
        super().__init__()
        self.cast = cast
        self.stem, self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.c(x) + self.b(torch.relu(self.a(x))))
        x = self.c2(x) if hasattr(self, "c2") else x
        return self.head((x.float() if self.cast else x).mean((2, 3)))


def random_game(seed: int, cast: bool = False):
    """A network, its channels and 64 images, most of them with the label that the network gives."""
    torch.manual_seed(seed)
    model = Residual(cast).eval()
    x = torch.randn(64, 3, 12, 12) * torch.rand(64, 3, 1, 1) * 3
    with torch.no_grad():
        logits = model(x)
        model.head.bias -= logits.mean(0)
        model.head.weight *= 8
        labels = model(x).argmax(1)
    wrong = torch.rand(64) < 0.2
    labels[wrong] = torch.randint(5, (int(wrong.sum()),))
    return model, channel_map(model, x[:1]), [(x[:40], labels[:40]), (x[40:], labels[40:])]


def both(game, exact):
    """Outcomes of a screened game and an exact one, the whole network and without each unit."""
    return car.with_and_without(game), car.with_and_without(exact)


@pytest.mark.parametrize("layer", ["stem", "a"])
@pytest.mark.parametrize("seed", range(6))
def test_counts_are_the_exact_ones(seed, layer, pays):
    model, channels, batches = random_game(seed)
    game = Coalitions(model, channels, layer, batches, classes=5, screened=True)
    assert game.screen is not None
    found, exact = both(game, Coalitions(model, channels, layer, batches, classes=5))
    assert torch.equal(found.by_class, exact.by_class)
    assert found.likelihood.tolist() == pytest.approx(exact.likelihood.tolist(), abs=1)
    assert 0 < game.screen.again < game.n * game.images


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_a_bad_estimate_is_seen_and_widens_the_tolerance(noise, pays, monkeypatch):
    model, channels, batches = random_game(0)
    game = Coalitions(model, channels, "a", batches, classes=5, screened=True)
    rough = game.screen._rough

    def noisy(chunk, masks, base):
        logits = rough(chunk, masks, base)
        return logits + noise * logits.std() * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(game.screen, "_rough", noisy)
    found, exact = both(game, Coalitions(model, channels, "a", batches, classes=5))
    assert torch.equal(found.by_class, exact.by_class)
    assert game.screen.tolerance > noise


@pytest.mark.parametrize("layer", ["conv1", "layer2.0.conv1", "layer3.0.conv2"])
def test_counts_of_resnet20_are_the_exact_ones(layer, resnet20, cifar, pays):
    checkpoint = load(resnet20, model="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing, validation="test:0.5", limit=64)
    batches = list(data.split("validation").batches(40))
    channels = channel_map(checkpoint.model, checkpoint.example())
    game = Coalitions(checkpoint.model, channels, layer, batches, classes=10, screened=True)
    found, exact = both(game, Coalitions(checkpoint.model, channels, layer, batches, classes=10))
    assert torch.equal(found.by_class, exact.by_class)
    assert game.screen.again < 0.5 * game.n * game.images


@pytest.mark.skipif(not fused.available(), reason="this processor or PyTorch does not fuse convs")
def test_fused_convs_compute_what_they_did():
    model, channels, batches = random_game(0)
    game = Coalitions(model, channels, "stem", batches, classes=5)
    part = game.split.after
    calls = [node.target for node in part.graph.nodes]
    (chunk,) = game.chunks()
    with torch.no_grad():
        expected = part(*chunk.crossing)
        fused.fuse(part)
        torch.testing.assert_close(part(*chunk.crossing), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) > len([node.target for node in part.graph.nodes])
    assert any(isinstance(module, fused.Fused) for module in part.modules())


class Sums(nn.Module):
    """Sums behind the filters: with an offset, with something larger, with itself, with a number."""

    def __init__(self, which: str):
        super().__init__()
        self.which = which
        self.stem, self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.offset = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x):
        x = torch.relu(self.a(torch.relu(self.stem(x))))
        y = self.b(x.mean((2, 3), keepdim=True) if self.which == "larger" else x)
        x = torch.relu(y + {"offset": self.offset, "larger": x, "itself": y, "number": x.shape[2] / 50}[self.which])
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("which", ["offset", "larger", "itself", "number"])
def test_whatever_is_added_is_screened(which, pays):
    torch.manual_seed(0)
    model, x, labels = Sums(which).eval(), torch.randn(64, 3, 12, 12), torch.arange(64) % 5
    channels = channel_map(model, x[:1])
    game = Coalitions(model, channels, "stem", [(x, labels)], classes=5, screened=True)
    assert game.screen is not None
    found, exact = both(game, Coalitions(model, channels, "stem", [(x, labels)], classes=5))
    assert torch.equal(found.by_class, exact.by_class)


def test_a_network_that_bfloat16_does_not_run_through_is_played_exactly(pays):
    model, channels, batches = random_game(0, cast=True)
    game = Coalitions(model, channels, "stem", batches, classes=5, screened=True)
    assert game.screen is None
    assert int(game.play(torch.ones(1, 8), base=torch.ones(8)).correct) > 0


@pytest.mark.parametrize("greedy", [False, True], ids=["one-shot", "greedy"])
def test_the_ranker_says_what_was_estimated(greedy, pays):
    model, channels, batches = random_game(0)
    scores = RANKERS["car"](model, channels, batches, classes=5, layers=["a"], greedy=greedy)
    assert any("bfloat16" in note for note in scores.notes or []) != greedy


@pytest.mark.parametrize(("pairs", "dtype"), [(100, torch.float32), (10**6, torch.float64)], ids=["small", "float64"])
def test_small_games_and_other_precisions_are_exact(pairs, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    model, channels, batches = random_game(0)
    own = Coalitions(model, channels, "a", batches, classes=5).split
    assert not screen.pays(own, pairs, dtype, torch.device("cpu"))
