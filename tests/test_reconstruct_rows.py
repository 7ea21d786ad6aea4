"""Which rows a layer's least squares is made of, and how much memory they may take."""

import pytest
import torch
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.pruning.reconstruct import reconstruct
from slimrank.errors import SlimrankError

from .test_reconstruct import batches, halved, network, pictures


def test_the_error_before_is_that_of_the_cut_layer_on_what_is_held_out():
    model, images = network(), pictures(60)
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(images)).layers[0]
    with torch.inference_mode():
        wanted = model[:4](images[::5])[:, [i for i, u in enumerate(channels.writes["3"].tolist()) if not gone[u]]]
        lost = (wanted - smaller[:4](images[::5])).square().sum()
    power = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert found.layer == "3"
    assert found.before == pytest.approx(float(lost / power), rel=1e-4)


def test_images_are_multiplied_block_by_block(monkeypatch):
    model, images = network(), batches(pictures(60))
    channels, gone, smaller = halved(model)
    at_once = reconstruct(model, smaller, channels, gone, images)
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.BLOCK", 1)
    found = reconstruct(model, smaller, channels, gone, images)
    assert [fit.rows for fit in found.layers] == [fit.rows for fit in at_once.layers]
    assert [fit.after for fit in found.layers] == pytest.approx([fit.after for fit in at_once.layers], rel=1e-3)


def test_of_many_positions_some_are_drawn(monkeypatch):
    """2,000 for each group at least, of 100 images with 64 each."""
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.ROWS", 1000)
    model = network()
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(100)))
    assert [fit.rows for fit in found.layers] == [80 * 20, 80, 80]
    assert all(fit.after <= fit.before for fit in found.layers)


def test_too_little_memory_for_a_gram_matrix_says_the_least(monkeypatch):
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    model = network()
    channels, gone, smaller = halved(model)
    with pytest.raises(
        SlimrankError, match=r"`memory` 1,000 bytes cannot hold the Gram matrix of 3, .* at least that"
    ) as error:
        reconstruct(model, smaller, channels, gone, batches(pictures(40)), memory=1000)
    least = int(str(error.value).split("it alone takes ")[1].split(" bytes")[0].replace(",", ""))
    tight, roomy = (reconstruct(model, smaller, channels, gone, batches(pictures(40)), memory=m) for m in (least, 2**30))
    assert torch.equal(tight.model[3].weight, roomy.model[3].weight)
    with pytest.raises(SlimrankError, match="Gram matrix"):
        reconstruct(model, smaller, channels, gone, batches(pictures(40)), memory=least - 1)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_each_group_of_a_conv_has_a_gram_matrix(groups):
    """A conv of groups that read as many channels as each other conv asks for that many times its memory."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4 * groups, 1), nn.ReLU(), nn.Conv2d(4 * groups, 2 * groups, 3, groups=groups), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(2 * groups * 36, 5))
    channels = channel_map(model, torch.randn(1, 3, 8, 8))
    gone = channels.removed({})
    gone[0] = True
    with pytest.raises(SlimrankError, match="Gram matrix of 2") as error:
        reconstruct(model, model, channels, gone, batches(pictures(40)), memory=1000)
    least = int(str(error.value).split("it alone takes ")[1].split(" bytes")[0].replace(",", ""))
    assert least == groups * 6 * 8 * 36**2
