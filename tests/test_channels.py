"""The channel map: which operators it follows, and that a network is traced once, and again only where it has changed."""

import copy
import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from slimrank.compress.channels import ChannelMap, channel_map, channels_of, masked, traced
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import Checkpoint
from slimrank.compress.pruning.surgery import cut
from slimrank.evaluate.data import Preprocessing


@pytest.fixture
def traces(monkeypatch) -> list[nn.Module]:
    """The networks that were traced, in order."""
    networks: list[nn.Module] = []
    trace = traced.channel_map

    def counted(model: nn.Module, example: torch.Tensor) -> ChannelMap:
        networks.append(model)
        return trace(model, example)

    monkeypatch.setattr(traced, "channel_map", counted)
    return networks


@pytest.fixture
def checkpoint() -> Checkpoint:
    return Checkpoint(zoo.build("lenet5").eval(), "lenet5", {}, Preprocessing.default(1, 28))


def test_a_checkpoint_is_traced_once(checkpoint, traces):
    channels = channels_of(checkpoint)
    assert channels_of(checkpoint) is channels
    assert channels_of(replace(checkpoint, classes=[str(i) for i in range(10)])) is channels
    assert len(traces) == 1


def test_other_weights_and_types_change_no_map(checkpoint, traces):
    channels = channels_of(checkpoint)
    with torch.no_grad():
        checkpoint.model.conv1.weight.add_(1)
    checkpoint.model.requires_grad_(False)
    checkpoint.model.train()
    assert channels_of(checkpoint) is channels
    assert checkpoint.model.training


def test_a_smaller_copy_is_a_network_of_its_own(checkpoint, traces):
    channels = channels_of(checkpoint)
    gone = channels.removed({"conv2": [0, 1, 2]})
    smaller = checkpoint.then(cut(checkpoint.model, channels, gone), step="prune")
    assert channels_of(smaller).group("conv2").units == 3
    assert channels_of(checkpoint) is channels
    assert len(traces) == 2


@pytest.mark.parametrize("change", ["module", "shape", "image"])
def test_a_changed_network_is_traced_again(checkpoint, traces, change):
    channels_of(checkpoint)
    if change == "module":
        checkpoint.model.fc3 = nn.Sequential(copy.deepcopy(checkpoint.model.fc3))
        assert channels_of(checkpoint).classifier == "fc3.0"
    elif change == "shape":
        checkpoint.model.fc3 = nn.Linear(25, 7)
        assert len(channels_of(checkpoint).writes["fc3"]) == 7
    else:
        larger = replace(checkpoint, preprocessing=Preprocessing.default(1, 30))  # 30 -> 13 -> 4, as 28 -> 12 -> 4
        assert channels_of(larger).positions["conv1"] == 26 * 26 * 25
    assert len(traces) == 2


def test_a_network_that_is_gone_leaves_no_map():
    fresh = Checkpoint(zoo.build("lenet5").eval(), "lenet5", {}, Preprocessing.default(1, 28))
    before = len(traced._TRACED)
    channels_of(fresh)
    assert len(traced._TRACED) == before + 1
    del fresh
    gc.collect()
    assert len(traced._TRACED) <= before


class Between(nn.Module):
    """One operator between two convs, 12 channels before it."""

    def __init__(self, operator: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.operator = operator
        self.first = nn.Conv2d(3, 12, 3)
        width = operator(torch.zeros(1, 12, 8, 8)).shape[1]
        self.second = nn.Conv2d(width, 4, 1)
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.second(self.operator(self.first(x))).relu().mean((2, 3)))


FOLLOWED = {
    "keep": lambda y: y.relu().neg(),
    "keep in place": lambda y: y.clone().clamp_(-1, 1),
    "pool": lambda y: F.max_pool2d(y, 2),
    "reduce": lambda y: y * y.mean((2, 3), keepdim=True),
    "reduce an axis of one": lambda y: y.unsqueeze(1).sum(1),
    "combine": lambda y: y.sigmoid() * y + 1,
    "concatenate": lambda y: torch.cat([y, y.relu()], 1),
    "pad": lambda y: F.pad(y, (1, 1, 1, 1)),
    "move": lambda y: y.transpose(2, 3).flip(1),
    "view": lambda y: y.view(1, y.shape[1], -1, 1),
    "pick positions": lambda y: y[..., 0].unsqueeze(-1),
    "slice positions": lambda y: y[:, :, ::2, 1:],
    "chunk": lambda y: y.chunk(2, 1)[0] * y.chunk(2, 1)[1],
    "shuffle": lambda y: F.channel_shuffle(y, 3),
}
PINNED = {
    "picked": (lambda y: y[:, 3:9], "by number"),
    "rolled": (lambda y: y.roll(1, 1), "by number"),
    "unequal chunks": (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)).chunk(3, 1)[0], "unequal parts"),
    "reduced": (lambda y: y * y.mean(1, keepdim=True), "passes through mean"),
    "unknown": (lambda y: y.softmax(1), "passes through softmax"),
    "a constant": (lambda y: y + torch.ones(12, 1, 1), "no filter makes"),
    "a weight of nobody": (lambda y: F.conv2d(y, torch.ones(12, 12, 1, 1)), "outside nn.Conv"),
}


@pytest.mark.parametrize("rule", FOLLOWED)
def test_what_a_rule_follows_is_cut_exactly(rule):
    torch.manual_seed(0)
    model = Between(FOLLOWED[rule]).double().eval()
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    channels = channel_map(model, x)
    group = channels.group("first")
    assert group.prunable
    assert not group.fixed
    gone = channels.removed({"first": range(1, group.units)})  # the first unit is cut
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(x)
    assert not torch.equal(expected, model(x))
    smaller = cut(model, channels, gone)
    assert smaller.first.out_channels == 12 - 12 // group.units
    torch.testing.assert_close(smaller(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("operator", PINNED)
def test_what_no_rule_follows_stays_and_says_why(operator):
    function, why = PINNED[operator]
    group = channel_map(Between(function).eval(), torch.randn(1, 3, 10, 10)).group("first")
    assert group.fixed
    assert why in group.why
