"""Block norm and class-specific gates: exact properties, and what training with them leaves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.models import CifarResnet, Lenet5
from slimrank.compress.training import gates
from slimrank.compress.training.block_norm import (
    Regularizer,
    blocks,
    concentration,
    distance,
    norms,
    omega,
    without_vanished,
)
from slimrank.compress.training.gates import projected
from slimrank.compress.training.recipe import BlockNorm, Csg, Recipe
from slimrank.errors import SlimrankError


def net(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    model = CifarResnet(8, widths=(10, 12, 14)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.2, 0.2)
    return model, torch.randn(4, 3, 16, 16)


def made(model, example, groups=5):
    channels = channel_map(model, example[:1])
    return channels, blocks(model, channels, groups), dict(model.named_parameters())


def members(model, layers) -> torch.Tensor:
    """All numbers that some group holds."""
    own = dict(model.named_parameters())
    return torch.cat([own[name][ids >= 0].flatten() for layer in layers for name, ids in layer.rows.items()]).detach()


def test_omega_is_what_it_is_called():
    model, example = net()
    _, layers, own = made(model, example)
    assert float(omega(own, layers, 1, 1)) == pytest.approx(float(members(model, layers).abs().sum()), rel=1e-5)
    frobenius = sum(float(members(model, [layer]).norm()) for layer in layers)
    assert float(omega(own, layers, 2, 2)) == pytest.approx(frobenius, rel=1e-5)
    _, alone, _ = made(model, example, 10)  # one filter a group in the layers of ten: the group lasso
    conv1 = next(layer for layer in alone if layer.layer == "conv1")
    unit = 3
    tied = [own[name][ids == unit].flatten() for name, ids in conv1.rows.items()]
    assert float(norms(own, conv1, 2)[unit]) == pytest.approx(float(torch.cat(tied).norm()), rel=1e-5)
    assert {"conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv2.weight"} <= set(conv1.rows)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]), st.sampled_from([1.0, 2.0, math.inf]), st.floats(0.1, 10))
def test_omega_scales(p, q, t):
    model, example = net()
    _, layers, own = made(model, example)
    scaled = {name: t * parameter for name, parameter in own.items()}
    assert float(omega(scaled, layers, p, q)) == pytest.approx(t * float(omega(own, layers, p, q)), rel=1e-4)


def test_every_filter_is_in_a_group_and_left_over_ones_too():
    model, example = net()
    _, layers, _ = made(model, example, 5)
    for layer in layers:
        counts = torch.bincount(layer.units, minlength=5)
        assert int(counts.sum()) == len(layer.units)
        assert int(counts.max() - counts.min()) <= 1
        assert bool((layer.units.diff() >= 0).all())  # contiguous


def test_proximal_step_is_the_minimiser():
    """argmin_v |v - w|^2 / 2 + step * ||v||: every group's norm is shortened by the step, or is zero."""
    model, example = net()
    channels, layers, _ = made(model, example)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = 0.5 * float(norms(before, layers[0], 2).median())
    Regularizer(model, channels, BlockNorm(2, 1, 5, step)).shrink(1.0)
    after = dict(model.named_parameters())
    layer = layers[0]
    size, left = norms(before, layer, 2), norms(after, layer, 2)
    assert torch.allclose(left, (size - step).clamp_min(0), atol=1e-5)
    untouched = [n for n in before if not any(n in layer.rows for layer in layers)]
    assert untouched
    assert all(torch.equal(before[n], after[n]) for n in untouched)


@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (1.0, 1.0)])
def test_a_vanished_group_is_cut_and_nothing_changes(p, q):
    model, example = net()
    channels, layers, own = made(model, example)
    named = {layer.layer: layer for layer in layers}
    gone = [(named[n], g) for n, g in (("conv1", [1, 3]), ("layer2.0.conv1", [0]), ("layer2.0.conv2", [0]))]
    with torch.no_grad():
        for layer, groups in gone:
            for name, ids in layer.rows.items():
                own[name][torch.isin(ids, torch.tensor(groups))] = 0
    smaller, found = without_vanished(model, channels, BlockNorm(p, q, 5, 0.1), example)
    assert found.gone == {layer.layer: groups for layer, groups in gone}
    assert found.fed == {"layer2.0.conv2": 2}  # the option-A shortcut pads one channel and feeds the others
    assert found.filters == sum(int(torch.isin(layer.units, torch.tensor(g)).sum()) for layer, g in gone) - 2
    with torch.inference_mode():
        assert torch.allclose(smaller.double()(example.double()), model.double()(example.double()), atol=1e-12)
    assert sum(q.numel() for q in smaller.parameters()) < sum(q.numel() for q in model.parameters())


def test_a_layer_is_never_emptied():
    model = Lenet5(widths=(5, 6, 8, 7)).eval()
    example = torch.randn(2, 1, 28, 28)
    channels, layers, own = made(model, example)
    with torch.no_grad():
        for name in layers[0].rows:
            own[name].zero_()
    smaller, found = without_vanished(model, channels, BlockNorm(2, 1, 5, 0.1), example)
    assert found.kept_alive == ["conv1"]
    assert smaller.conv1.out_channels == 1
    assert torch.allclose(smaller(example), model(example), atol=1e-6)


def test_maps_that_agree_and_maps_in_one_place():
    a = torch.zeros(1, 1, 8, 8)
    a[..., 2, 3] = 1.0
    assert float(distance(a, a)) == 0
    assert float(distance(a, a.flip(3))) == pytest.approx(1.0)
    assert float(distance(torch.zeros_like(a), torch.zeros_like(a))) == 0
    assert float(concentration(a)) == pytest.approx(0, abs=1e-5)
    assert float(concentration(torch.ones_like(a))) > 0.3
    two = a + a.flip(3)  # one position from each side of the centre, 3 and 4 of 8
    assert float(concentration(two)) == pytest.approx(0.5 / 8, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_gates_are_projected(seed):
    generator = torch.Generator().manual_seed(seed)
    values = 2 * torch.randn(7, 4, generator=generator)
    values[2] = -1.0
    once = projected(values)
    assert torch.allclose(projected(once), once)
    assert float(once.min()) >= 0
    assert torch.allclose(once.amax(1), torch.ones(7))
    assert torch.equal(once[2], torch.ones(4))


def test_gates_begin_at_a_half_and_pass_the_true_class():
    model = nn.Sequential(nn.Linear(6, 3))
    held = gates.Gates(model, "0", model[0].weight)
    assert float(held.values.detach().mean()) == 0.5
    x, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 2, 1])
    with held.on(labels):
        assert torch.allclose(model(x), nn.functional.linear(0.5 * x, *model[0].parameters()))
    assert torch.allclose(model(x), nn.functional.linear(x, *model[0].parameters()))
    assert float(held.penalty()) == pytest.approx(1e-3 * (0.5 - 0.2) * 18, rel=1e-5)


def test_epochs_that_are_gated():
    assert [e for e in range(18) if Csg().gated(e)] == [10, 13, 16]
    assert [e for e in range(6) if Csg(0).gated(e)] == [0, 3]


def test_information_in_nats():
    labels = torch.arange(3000) % 3
    x = torch.stack([labels.float(), torch.rand(3000, generator=torch.Generator().manual_seed(0))], 1)
    whole, each = gates.information(x, labels, 3)
    assert float(whole[0]) == pytest.approx(math.log(3), abs=1e-6)
    assert float(whole[1]) < 0.02
    one = -(1 / 3) * math.log(1 / 3) - (2 / 3) * math.log(2 / 3)
    assert torch.allclose(each[0], torch.full((3,), one, dtype=torch.float64), atol=1e-6)


def test_gates_go_on_and_are_cut_along():
    model, example = net()
    given = torch.rand(14, 10)
    held = gates.Gates(model, "linear", model.linear.weight, given)
    assert torch.equal(held.values.detach(), given)
    channels = channel_map(model, example[:1])
    gone = channels.removed({channels.group("layer3.0.conv2").name: [0, 2, 5]})
    assert torch.equal(gates.cut_along(given, channels, gone), given[[0, 2, 5]])
    with pytest.raises(SlimrankError, match="14 features"):
        gates.Gates(model, "linear", torch.zeros(10, 12), given)


def test_gates_choose_the_widest():
    values = torch.tensor([[1.0, 0.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.3]])
    weight = torch.tensor([[0.1, 5.0, 0.3, -0.4], [1.0, 1.0, 1.0, 1.0]])
    assert gates.choose(values, weight, 2).tolist() == [[2, 3], [1, 3]]
    with pytest.raises(SlimrankError, match="4 features and 2 classes"):
        gates.choose(values, torch.zeros(3, 4), 2)


def test_settings_that_cannot_train():
    for norm in (BlockNorm(0.5), BlockNorm(2, 1, 0), BlockNorm(2, 1, 5, -1.0), BlockNorm(math.nan), BlockNorm()):
        with pytest.raises(SlimrankError, match="`block_norm`"):
            Recipe(1, 0.1, block_norm=norm).check()
    with pytest.raises(SlimrankError, match="`csg`"):
        Recipe(5, 0.1, csg=Csg()).check()
    with pytest.raises(SlimrankError, match="one of the two"):
        Recipe(20, 0.1, csg=Csg(), block_norm=BlockNorm(strength=0.1)).check()
    model, example = net()
    with pytest.raises(SlimrankError, match="take at most 10"):
        blocks(model, channel_map(model, example[:1]), 11)
