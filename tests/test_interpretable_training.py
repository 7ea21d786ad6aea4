"""Block norm and class-specific gates: exact properties, and what training with them leaves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.papers import CifarResnet, Lenet5
from slimrank.compress.training import gates
from slimrank.compress.training.block_norm import (
    BlockNormRegulariser,
    concentration,
    distance,
    filter_blocks,
    norms,
    omega,
)
from slimrank.compress.training.gates import projected
from slimrank.compress.training.recipe import BlockNorm, Csg, Interpretable, Recipe, read_block_norm
from slimrank.compress.training.vanished import without_vanished
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


def divided(model, example, count=5):
    """The channels, the blocks of filters and the parameters of a network."""
    channels = channel_map(model, example[:1])
    return channels, filter_blocks(model, channels, count), dict(model.named_parameters())


def members(model, layers) -> torch.Tensor:
    """All numbers that some block holds."""
    own = dict(model.named_parameters())
    return torch.cat([own[name][ids >= 0].flatten() for layer in layers for name, ids in layer.of_row.items()]).detach()


def test_omega_is_what_it_is_called():
    model, example = net()
    _, layers, own = divided(model, example)
    assert float(omega(own, layers, 1, 1)) == pytest.approx(float(members(model, layers).abs().sum()), rel=1e-5)
    frobenius = sum(float(members(model, [layer]).norm()) for layer in layers)
    assert float(omega(own, layers, 2, 2)) == pytest.approx(frobenius, rel=1e-5)
    _, alone, _ = divided(model, example, 10)  # one filter a block in the layers of ten: the group lasso
    conv1 = next(layer for layer in alone if layer.layer == "conv1")
    unit = 3
    tied = [own[name][ids == unit].flatten() for name, ids in conv1.of_row.items()]
    assert float(norms(own, conv1, 2)[unit]) == pytest.approx(float(torch.cat(tied).norm()), rel=1e-5)
    assert {"conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv2.weight"} <= set(conv1.of_row)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]), st.sampled_from([1.0, 2.0, math.inf]), st.floats(0.1, 10))
def test_omega_scales(p, q, t):
    model, example = net()
    _, layers, own = divided(model, example)
    scaled = {name: t * parameter for name, parameter in own.items()}
    assert float(omega(scaled, layers, p, q)) == pytest.approx(t * float(omega(own, layers, p, q)), rel=1e-4)


def test_every_filter_is_in_a_block_and_left_over_ones_too():
    model, example = net()
    _, layers, _ = divided(model, example, 5)
    for layer in layers:
        counts = torch.bincount(layer.of_unit, minlength=5)
        assert int(counts.sum()) == len(layer.of_unit)
        assert int(counts.max() - counts.min()) <= 1
        assert bool((layer.of_unit.diff() >= 0).all())  # contiguous


def test_proximal_step_is_the_minimiser():
    """argmin_v |v - w|^2 / 2 + step * ||v||: every block's norm is shortened by the step, or is zero."""
    model, example = net()
    channels, layers, _ = divided(model, example)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = 0.5 * float(norms(before, layers[0], 2).median())
    BlockNormRegulariser(model, channels, BlockNorm(2, 1, 5, step)).after_step(1.0)
    after = dict(model.named_parameters())
    layer = layers[0]
    size, left = norms(before, layer, 2), norms(after, layer, 2)
    assert torch.allclose(left, (size - step).clamp_min(0), atol=1e-5)
    untouched = [n for n in before if not any(n in layer.of_row for layer in layers)]
    assert untouched
    assert all(torch.equal(before[n], after[n]) for n in untouched)


@pytest.mark.parametrize(("p", "q"), [(2.0, 1.0), (1.0, 1.0)])
def test_a_vanished_block_is_cut_and_nothing_changes(p, q):
    model, example = net()
    channels, layers, own = divided(model, example)
    named = {layer.layer: layer for layer in layers}
    gone = [(named[n], g) for n, g in (("conv1", [1, 3]), ("layer2.0.conv1", [0]), ("layer2.0.conv2", [0]))]
    with torch.no_grad():
        for layer, groups in gone:
            for name, ids in layer.of_row.items():
                own[name][torch.isin(ids, torch.tensor(groups))] = 0
    smaller, found = without_vanished(model, channels, BlockNorm(p, q, 5, 0.1), example)
    assert found.gone == {layer.layer: groups for layer, groups in gone}
    assert found.fed == {"layer2.0.conv2": 2}  # the option-A shortcut pads one channel and feeds the others
    assert found.filters == sum(int(torch.isin(layer.of_unit, torch.tensor(g)).sum()) for layer, g in gone) - 2
    with torch.inference_mode():
        assert torch.allclose(smaller.double()(example.double()), model.double()(example.double()), atol=1e-12)
    assert sum(q.numel() for q in smaller.parameters()) < sum(q.numel() for q in model.parameters())


def test_a_layer_is_never_emptied():
    model = Lenet5(widths=(5, 6, 8, 7)).eval()
    example = torch.randn(2, 1, 28, 28)
    channels, layers, own = divided(model, example)
    with torch.no_grad():
        for name in layers[0].of_row:
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
    held = gates.Gates(model, "0", model[0].weight, Csg())
    assert float(held.values.detach().mean()) == 0.5
    x, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 2, 1])
    with held.context(labels):
        assert torch.allclose(model(x), nn.functional.linear(0.5 * x, *model[0].parameters()))
    assert torch.allclose(model(x), nn.functional.linear(x, *model[0].parameters()))
    assert float(held.penalty({}, torch.Generator())) == pytest.approx(1e-3 * (0.5 - 0.2) * 18, rel=1e-5)


@pytest.mark.parametrize(
    ("csg", "epochs"), [(Csg(), [10, 13, 16]), (Csg(0), [0, 3, 6, 9, 12, 15])], ids=["scratch", "checkpoint"]
)
def test_epochs_that_are_gated(csg, epochs):
    assert [e for e in range(18) if csg.gated(e)] == epochs


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
    held = gates.Gates(model, "linear", model.linear.weight, Csg(), given)
    assert torch.equal(held.values.detach(), given)
    channels = channel_map(model, example[:1])
    gone = channels.removed({channels.group("layer3.0.conv2").name: [0, 2, 5]})
    assert torch.equal(gates.cut_along(given, channels, gone), given[[0, 2, 5]])
    with pytest.raises(SlimrankError, match="14 features"):
        gates.Gates(model, "linear", torch.zeros(10, 12), Csg(), given)


def test_gates_choose_the_widest():
    values = torch.tensor([[1.0, 0.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.3]])
    weight = torch.tensor([[0.1, 5.0, 0.3, -0.4], [1.0, 1.0, 1.0, 1.0]])
    assert gates.choose(values, weight, 2).tolist() == [[2, 3], [1, 3]]
    with pytest.raises(SlimrankError, match="4 features and 2 classes"):
        gates.choose(values, torch.zeros(3, 4), 2)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (Recipe(1, 0.1, block_norm=BlockNorm(0.5)), "`block_norm`: P is 0.5"),
        (Recipe(1, 0.1, block_norm=BlockNorm(math.nan)), "`block_norm`: P is nan"),
        (Recipe(1, 0.1, block_norm=BlockNorm(2, 0)), "`block_norm`: Q is 0"),
        (Recipe(1, 0.1, block_norm=BlockNorm(2, 1, 0)), "`block_norm`: 0 groups"),
        (Recipe(1, 0.1, block_norm=BlockNorm(2, 1, 5, -1.0)), "`block_norm`: LAMBDA is -1.0"),
        (Recipe(1, 0.1, block_norm=BlockNorm(activation_norm=-1.0)), "`activation_norm` is -1.0"),
        (Recipe(1, 0.1, block_norm=BlockNorm(spatial_norm=math.inf)), "`spatial_norm` is inf"),
        (Recipe(1, 0.1, block_norm=BlockNorm()), "nothing is asked for"),
        (Recipe(5, 0.1, csg=Csg()), "`csg` from scratch gates epochs from the 11th on, `epochs` is 5"),
        (Recipe(20, 0.1, csg=Csg(), block_norm=BlockNorm(strength=0.1)), "one of the two"),
        (Recipe(20, 0.1, csg=Csg(), patience=3), "`patience` keeps the best epoch"),
    ],
    ids=["p", "nan", "q", "no-groups", "lambda", "activation", "spatial", "nothing", "csg-epochs", "both", "patience"],
)
def test_settings_that_cannot_train(recipe, match):
    with pytest.raises(SlimrankError, match=match):
        recipe.check()


def test_more_blocks_than_filters():
    model, example = net()
    with pytest.raises(SlimrankError, match="take at most 10"):
        filter_blocks(model, channel_map(model, example[:1]), 11)


@pytest.mark.parametrize(
    ("asked", "from_scratch", "block_norm", "csg"),
    [
        (Interpretable(), True, None, None),
        (Interpretable(read_block_norm("inf,2,4,0.1")), True, BlockNorm(math.inf, 2, 4, 0.1), None),
        (Interpretable(None, 0.5), True, BlockNorm(activation_norm=0.5), None),
        (Interpretable(None, None, 0.0), True, BlockNorm(), None),  # given as 0: check refuses it
        (Interpretable(read_block_norm("2,1,5,1"), 0.5, 0.2), True, BlockNorm(2, 1, 5, 1, 0.5, 0.2), None),
        (Interpretable(csg=True), True, None, Csg(10)),
        (Interpretable(csg=True), False, None, Csg(0)),
    ],
    ids=["neither", "norm", "activation", "zero", "all terms", "csg from scratch", "csg from a checkpoint"],
)
def test_what_train_adds_to_a_recipe(asked, from_scratch, block_norm, csg):
    recipe = asked.added_to(Recipe(3, 0.1), from_scratch=from_scratch)
    assert recipe == Recipe(3, 0.1, block_norm=block_norm, csg=csg)
