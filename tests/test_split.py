"""Networks cut in two where a layer's units are read: whatever reads them, they are counted as masked."""

import pytest
import torch

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions import activations
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.coalitions.sites import Site
from slimrank.compress.network import zoo

from .test_coalitions import same
from .test_surgery import lively
from .toy_models import PadsFirst


@pytest.fixture(scope="module", params=[
    ("resnet18", 32), ("mobilenet_v2", 32), ("densenet121", 32), ("squeezenet1_1", 64), ("shufflenet_v2_x0_5", 32),
    ("efficientnet_b0", 32), ("regnet_y_400mf", 32), ("vgg16-cifar", 32), ("alexnet", 64), ("googlenet", 64),
], ids=lambda param: param[0])  # fmt: skip
def family(request):
    """Concat, depthwise, squeeze-excite, channel shuffle, hidden linear layers: model, channels, batches."""
    name, size = request.param
    torch.manual_seed(0)
    model = lively(zoo.build(name, {"num_classes": 7}))
    x = torch.randn(6, 3, size, size, dtype=torch.float64)
    return model, channel_map(model, x[:1]), [(x, torch.arange(6) % 7)]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_every_family_is_split_and_counted_as_masked(family, place):
    model, channels, batches = family
    names = channels.chosen(None)
    layer = names[{"first": 0, "middle": len(names) // 2, "last": -1}[place]]
    game = Coalitions(model, channels, layer, batches, classes=7, dtype=torch.float64)
    assert not game.split.whole
    masks = torch.rand(2, game.n, generator=torch.Generator().manual_seed(2)) < 0.7
    masks[:, list(channels.group(layer).fixed)] = True
    same(game, model, channels, layer, batches, masks)


class Reads(torch.nn.Module):
    """A stem of six filters, and a head that reads them: fn(self, [images, 6, 6, 6], the images)."""

    def __init__(self, head):
        super().__init__()
        self.stem, self.head, self.down = torch.nn.Conv2d(3, 6, 3), head, PadsFirst(6, 5, 3)
        self.one, self.two = torch.nn.Conv2d(6, 5, 3), torch.nn.Conv2d(6, 5, 1)
        self.pool = torch.nn.MaxPool2d(2, 1)
        self.side, self.wide = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(10, 5, 1)
        self.line, self.fc, self.classifier = torch.nn.Conv1d(6, 5, 3), torch.nn.Linear(6, 5), torch.nn.Linear(5, 5)

    def forward(self, x):
        return self.classifier(self.head(self, torch.relu(self.stem(x)), x))


HEADS = {
    "one layer": lambda s, x, image: s.one(x).relu().mean((2, 3)),
    "two layers": lambda s, x, image: s.one(x).relu().mean((2, 3)) + s.two(x).sigmoid().mean((2, 3)),
    "the image as well": lambda s, x, image: s.one(x).relu().mean((2, 3)) * image.mean((2, 3)).sum(1, keepdim=True),
    "sizes": lambda s, x, image: s.one(x).relu().view(x.size(0), 5, -1).sum(2) / x.shape[2] / x.dim(),
    "sizes of the image": lambda s, x, image: s.one(x).relu().reshape(image.shape[0], 5, -1)[..., : image.numel()].amax(2),
    "a scaled sum": lambda s, x, image: torch.add(s.one(x), s.two(x)[:, :, 1:-1, 1:-1], alpha=0.5).relu().mean((2, 3)),
    "beside another group": lambda s, x, image: s.wide(torch.cat([x, s.side(image)], 1)).relu().mean((2, 3)),
    "behind another group": lambda s, x, image: s.wide(torch.cat([s.side(image), x], 1)).relu().mean((2, 3)),
    "a sequence": lambda s, x, image: s.line(x.flatten(2)).relu().mean(2),
    "features": lambda s, x, image: s.fc(x.mean((2, 3))).relu(),
    "tokens": lambda s, x, image: s.fc(x.flatten(2).transpose(1, 2)).relu().mean(1),
    "a product": lambda s, x, image: (s.one(x) * s.two(x)[:, :, 1:-1, 1:-1]).mean((2, 3)),
    "a layer that is called twice": lambda s, x, image: s.two(x).mean((2, 3)) + s.two(x.flip(2) * 2).relu().mean((2, 3)),
    "a pool that is called twice": lambda s, x, image: s.pool(s.pool(s.one(x))).relu().mean((2, 3)),
    "a layer of the user's own": lambda s, x, image: s.down(x).relu().mean((2, 3)),
    "hidden from the trace": lambda s, x, image: s.one(x).mean((2, 3)) if isinstance(x, torch.Tensor) else s.fc(x.mean((2, 3))),
    "untraceable": lambda s, x, image: s.one(x).mean((2, 3)) if float(x.mean()) < 1e9 else x,
    "untraceable, a layer of the user's own": lambda s, x, image: s.down(x).mean((2, 3)) if float(x.mean()) < 1e9 else x,
}
WHOLE = {
    "a layer that is called twice": "two is called twice", "hidden from the trace": "the trace does not call one",
    "untraceable": "float()",
    "untraceable, a layer of the user's own": "float()",
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_whatever_reads_the_units_they_are_counted_as_masked(head, monkeypatch):
    """In chunks of eight, eight and three images, and near a base of some of them."""
    monkeypatch.setattr(activations, "CHUNK_BYTES", 1)
    torch.manual_seed(0)
    model = Reads(HEADS[head]).double()
    x, labels = torch.randn(19, 3, 8, 8, dtype=torch.float64), torch.arange(19) % 5
    channels = channel_map(model, x[:1])
    game = Coalitions(model, channels, "stem", [(x, labels)], classes=5, dtype=torch.float64)
    assert [WHOLE.get(head, "") in note for note in game.notes] == [True] * (head in WHOLE)
    masks = torch.rand(5, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    for _ in range(2):
        same(game, model, channels, "stem", [(x, labels)], masks)
        same(game, model, channels, "stem", [(x, labels)], ~torch.eye(6).bool(), base=torch.ones(6).bool())
    assert (game.evaluations, game.n) == (22, 6)
    if head in WHOLE:
        assert game.passes == 22 * 19


@pytest.mark.parametrize(("layer", "logits"), [("stem", False), ("classifier", True)])
def test_what_the_classifier_alone_reads_gives_the_logits_at_once(layer, logits):
    torch.manual_seed(0)
    model, x = Reads(HEADS["one layer"]), torch.randn(10, 3, 8, 8)
    game = Coalitions(model, channel_map(model, x[:1]), layer, [(x, torch.arange(10) % 5)], classes=5)
    assert game.split.linear
    assert game.split.logits is logits


LAYERS = {
    "linear": (torch.nn.Linear(6, 4), (5, 6)),
    "linear on tokens": (torch.nn.Linear(6, 4), (5, 3, 6)),
    "conv1d": (torch.nn.Conv1d(6, 4, 3), (5, 6, 9)),
    "conv": (torch.nn.Conv2d(6, 4, 3, stride=2, padding=(2, 1), dilation=(1, 2), bias=False), (5, 6, 9, 8)),
    "conv of groups": (torch.nn.Conv2d(6, 4, 3, groups=2), (5, 6, 9, 8)),
    "conv, same": (torch.nn.Conv2d(6, 4, 3, padding="same"), (5, 6, 9, 8)),
    "conv, circular": (torch.nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (5, 6, 9, 8)),
    "conv3d": (torch.nn.Conv3d(6, 4, 2), (5, 6, 3, 4, 5)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_site_multiplies_the_channels_of_its_units(layer, shape):
    """Channels of no unit (-1) stay; without a scale the layer is as it was."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    site = Site(layer, torch.tensor([0, 2, -1, 1, 0, -1]))
    assert torch.equal(site(x), layer(x))
    site.scale = torch.tensor([0.5, 0.0, -2.0])
    factors = torch.tensor([0.5, -2, 1, 0, 0.5, 1])
    scaled = x * factors if layer.weight.dim() == 2 else (x.movedim(1, -1) * factors).movedim(-1, 1)
    torch.testing.assert_close(site(x), layer(scaled))
    if site.dense:
        bias = site.apply_weight(x, layer.weight) - site.apply_weight(x, layer.weight, bias=False)
        expected = torch.zeros(4) if layer.bias is None else layer.bias
        torch.testing.assert_close(bias.movedim(site.axis, -1), expected.expand_as(bias.movedim(site.axis, -1)))
