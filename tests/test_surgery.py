"""The gate: masked logits == sliced logits in float64, for every filter group. Nothing else counts before this."""

import pytest
import torch
from torch import nn

from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.inputs import image_channels
from slimrank.compress.pruning.surgery import cut

from .reference import masked_by_weights


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics and affine parameters: a real spread, and zeroed filters leave a constant behind."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            n = module.num_features
            module.running_mean = 0.2 * torch.randn(n, generator=generator)
            module.running_var = 0.5 + torch.rand(n, generator=generator)
            module.weight.data = 0.7 + 0.6 * torch.rand(n, generator=generator)
            module.bias.data = 0.3 * torch.randn(n, generator=generator)
    return model.double().eval()


def check(model: nn.Module, size: int, picks) -> int:
    """Compare masked and sliced for the units that `picks(group)` gives, one cut at a time; the number of cuts."""
    x = torch.randn(2, image_channels(model, (size, size)), size, size, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    cuts = changed = 0
    with torch.inference_mode():
        plain = model(x)
        for group in channels.groups:
            if not group.prunable:
                assert group.name == channels.classifier or "all tied together" in group.why, (group.name, group.why)
                continue
            for units in picks(group):
                gone = channels.removed({})
                gone[torch.as_tensor(units) + group.offset] = True
                with masked(model, channels, gone):
                    expected = model(x)
                sliced = cut(model, channels, gone)(x)
                torch.testing.assert_close(sliced, expected, rtol=1e-9, atol=1e-9 * float(plain.std()))
                changed += not torch.equal(expected, plain)
                cuts += 1
    assert changed > 0.75 * cuts, f"only {changed} of {cuts} cuts moved the logits: too many dead filters to prove anything"
    return cuts


def few(group, n=3):
    """Several random units, never unit 0, alone and together."""
    generator = torch.Generator().manual_seed(group.offset)
    units = (1 + torch.randperm(group.units - 1, generator=generator)[:n]).tolist()
    return [[units[0]], units] if units else []


@pytest.mark.parametrize(("name", "size"), [("resnet20-cifar", 32), ("resnet18", 64), ("lenet5", 28), ("vgg16-cifar", 32)])
def test_masked_equals_sliced_for_every_group(name, size):
    torch.manual_seed(0)
    assert check(lively(zoo.build(name)), size, few) > 5


def test_every_residual_stream_filter_of_resnet20():
    torch.manual_seed(0)
    model = lively(zoo.build("resnet20-cifar"))
    streams = {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}
    picks = lambda g: [[u] for u in range(g.units)] if g.name in streams else []  # noqa: E731
    assert check(model, 32, picks) == sum(streams.values())


def test_every_residual_stream_filter_of_the_real_resnet20(resnet20):
    from slimrank.compress.network.checkpoint import load

    model = load(resnet20, model="resnet20-cifar").model.double().eval()
    picks = lambda g: [[u] for u in range(g.units)] if len(g.layers) > 1 else []  # noqa: E731
    assert check(model, 32, picks) == 16 + 32 + 64


def test_masked_is_what_zeroed_weights_and_constants_give():
    """The mask against the slow way: conv weights and BatchNorm of the filter set to zero, on a chain without residuals."""
    torch.manual_seed(0)
    model = lively(zoo.build("vgg16-cifar"))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    with torch.inference_mode():
        for conv, norm, unit in [("features.0", "features.1", 5), ("features.10", "features.11", 77)]:
            gone = channels.removed({})
            gone[channels.group(conv).offset + unit] = True
            with masked(model, channels, gone):
                torch.testing.assert_close(model(x), masked_by_weights(model, conv, norm, unit)(x))


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", "resnext50_32x4d", "shufflenet_v2_x0_5", "googlenet", "regnet_y_400mf"]
)
def test_grouped_depthwise_shuffled_and_gated_networks(name):
    torch.manual_seed(0)
    model = lively(zoo.build(name))
    assert check(model, 64, lambda g: few(g)[1:]) > 5


def test_users_own_option_a_shortcut_with_fixed_padding():
    """F.pad with sizes written into forward(): the streams are tied through the padding, the padded channels must stay."""
    torch.manual_seed(0)
    from .toy_models import FixedPadNet

    model = lively(FixedPadNet())
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    stream = channels.group("stem")
    assert "down" in stream.layers
    assert len(stream.fixed) == 8
    assert "no filter makes" in stream.why
    assert channels.group("classifier").why
    assert check(model, 16, lambda g: [[i] for i in range(g.units) if i not in g.fixed]) >= 8


@pytest.mark.parametrize("how", ["chunk", "split", "roll", "slice"])
def test_channels_taken_apart_in_forward(how):
    """Equal chunks shrink together; channels picked by number stay, and inspect says why."""
    torch.manual_seed(0)
    from .toy_models import PickingNet

    model = PickingNet(how).double().eval()
    channels = channel_map(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    stem = channels.group("stem")
    if how == "chunk":
        assert (stem.units, stem.fixed) == (6, ())
    else:
        assert not stem.prunable
        assert "by number" in stem.why
    assert channels.group("left").layers == ("left", "right")
    picks = lambda g: [[u] for u in range(g.units)] if g.prunable else []  # noqa: E731
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for group in channels.groups:
        for units in picks(group):
            gone = channels.removed({})
            gone[torch.tensor(units) + group.offset] = True
            with torch.inference_mode(), masked(model, channels, gone):
                expected = model(x)
            torch.testing.assert_close(cut(model, channels, gone)(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", ["fft", "rfft", "complex", "quantised", "sorted", "compared"])
def test_channels_that_are_no_real_numbers_for_a_while(how):
    """Where no rule follows them they are pinned with the operator's name; the cut is exact either way."""
    torch.manual_seed(0)
    from .toy_models import Aside

    model = Aside(how).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    stem = channels.group("stem")
    assert stem.prunable or "passes through" in stem.why
    for group in channels.groups:
        gone = channels.removed({})
        if group.prunable:
            gone[group.offset + 1] = True
            with torch.inference_mode(), masked(model, channels, gone):
                expected = model(x)
            torch.testing.assert_close(cut(model, channels, gone)(x), expected, rtol=1e-9, atol=1e-9)
