"""Games of one network hand on what the layers before the mask gave: the same counts, and images that are read once."""

import pytest
import torch
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions.activations import Relay
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.rankers import RANKERS


class Branches(nn.Module):
    """Two branches of one input, of which the second reads what comes before the first, too."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 1)
        self.c, self.d = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.c(torch.relu(self.a(x)))) + torch.relu(self.b(x))
        return self.head(self.d(y).mean((2, 3)))


@pytest.mark.parametrize("order", [["stem", "a", "b", "d"], ["d", "b", "a", "stem"], ["a", "b", "a", "c"]], ids="-".join)
@pytest.mark.parametrize("memory", [2**31, 30_000, 0])
def test_games_in_any_order_hand_on_what_they_kept(order, memory):
    torch.manual_seed(0)
    model, x = Branches().double().eval(), torch.randn(40, 3, 6, 6, dtype=torch.float64)
    labels, channels = torch.arange(40) % 3, channel_map(model, x[:1])
    batches, relay = [(x[:25], labels[:25]), (x[25:], labels[25:])], Relay()
    for name in order:
        options = {"classes": 3, "memory": memory, "dtype": torch.float64}
        alone = Coalitions(model, channels, name, batches, **options)
        game = Coalitions(model, channels, name, batches, **options, relay=relay)
        masks = torch.rand(9, game.n, generator=torch.Generator().manual_seed(1)) < 0.6
        found, expected = game.play(masks, likelihood=True), alone.play(masks, likelihood=True)
        assert torch.equal(found.by_class, expected.by_class)
        assert torch.equal(found.likelihood, expected.likelihood)
        assert torch.equal(game.class_images, alone.class_images)


def test_images_are_read_once_for_all_games():
    torch.manual_seed(0)
    model, x, reads = Branches().eval(), torch.randn(40, 3, 6, 6), []
    labels, channels = torch.arange(40) % 3, channel_map(model, x[:1])

    class Batches:
        def __iter__(self):
            reads.append(1)
            return iter([(x, labels)])

    car = RANKERS["car"](model, channels, Batches(), classes=3)
    assert len(car.scores) > 2
    assert len(reads) == 2  # once to see how many fit the cache
