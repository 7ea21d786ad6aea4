"""A network is traced once, and again only where it has changed."""

import copy
import gc
from dataclasses import replace

import pytest
import torch
from torch import nn

from slimrank.compress.channels import ChannelMap, channels_of, traced
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
