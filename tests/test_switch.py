"""The importance switch: its divergence, its prior, its deviations."""

import copy

import pytest
import torch
from torch import nn

from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.rankers import RANKERS, SwitchOptions, switch

from . import reference
from .digits import Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.mark.parametrize("alpha0", [0.3, 1.0])
def test_kl_is_the_formula_and_zero_only_at_the_prior(alpha0, digits):
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    theta = torch.randn(game.n, generator=torch.Generator().manual_seed(1)).double()
    _, kl = switch.loss(game, theta, list(chunk.crossing), chunk.labels, SwitchOptions(alpha0=alpha0))
    phi = nn.functional.softplus(theta)
    expected = reference.dirichlet_kl(phi, torch.full_like(phi, alpha0))
    assert float(kl) * game.images == pytest.approx(expected, rel=1e-9)
    assert expected > 0
    prior = torch.full((game.n,), alpha0).double().expm1().log()
    _, kl = switch.loss(game, prior, list(chunk.crossing), chunk.labels, SwitchOptions(alpha0=alpha0))
    assert float(kl) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("alpha0", [0.3, 2.0])
def test_what_the_images_do_not_tell_is_left_to_the_prior(alpha0, digits):
    """Where nothing reads the filters, the likelihood is flat: KL alone moves phi, to alpha0 for every filter."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model.conv2.weight.zero_()
    batches = [(x, y) for x, y in digits.batches]
    game = Coalitions(model, digits.channels, "conv1", batches, classes=10, dtype=torch.float64)
    phi, _ = switch.learn(game, SwitchOptions(alpha0=alpha0, epochs=300, lr=0.05))
    assert phi.tolist() == pytest.approx([alpha0] * game.n, rel=0.02)


@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc1", "fc2"])
def test_identity_uniform_phi_leaves_the_logits_as_they_are(layer, digits):
    game = Coalitions(digits.model, digits.channels, layer, digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    nll, _ = switch.loss(
        game,
        torch.full((game.n,), 0.7).double(),
        list(chunk.crossing),
        chunk.labels,
        SwitchOptions(alpha0=1.0, identity=True),
    )
    x = digits.x[: len(chunk)]
    expected = nn.functional.cross_entropy(digits.model(x), chunk.labels)
    assert float(nll) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_switch_before_relu_and_behind_it_are_the_same(digits):
    """The paper's place (before the activation) against ours (where the next layer reads), for ReLU and pooling."""
    s = torch.rand(6, generator=torch.Generator().manual_seed(0)).double()
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    game.split.scale(s)
    ours = game.split.after(*next(game.chunks()).crossing)
    paper = copy.deepcopy(digits.model)
    paper.conv1.register_forward_hook(lambda _m, _i, out: out * s.view(1, -1, 1, 1))
    torch.testing.assert_close(ours, paper(digits.x)[: len(ours)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampled", [False, True])
def test_samples_differ_and_the_mean_does_not(sampled, digits):
    game = Coalitions(digits.model, digits.channels, "conv1", digits.batches, classes=10, dtype=torch.float64)
    chunk = next(game.chunks())
    torch.manual_seed(0)
    theta = torch.zeros(game.n, dtype=torch.float64)
    options = SwitchOptions(sampled=sampled)
    nlls = {float(switch.loss(game, theta, list(chunk.crossing), chunk.labels, options)[0]) for _ in range(4)}
    assert len(nlls) == (4 if sampled else 1)


@pytest.mark.parametrize("sampled", [False, True])
def test_switch_learns(digits, sampled):
    batches = [(x.float(), y) for x, y in digits.batches]
    found = RANKERS["switch"](digits.model, digits.channels, batches, classes=10, layers=["conv2"], sampled=sampled, epochs=30)
    curve = found.extra["curve"]["conv2"]
    assert len(curve) == 30
    first, last = sum(curve[:10]) / 10, sum(curve[-10:]) / 10  # one draw of s a step is noisy
    assert last < first - 0.01, (first, last)
    assert sum(found.scores["conv2"]) == pytest.approx(1, abs=1e-6)
    assert found.evaluations == 30
