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
    # pointwise operators, under any name and with any number of tensors
    "1 - y": lambda y: 1 - y.sigmoid(),
    "power": lambda y: y**2 + 2**y,
    "reciprocal": lambda y: 1 / (y.abs() + 1),
    "where": lambda y: torch.where(y > y.mean((2, 3), keepdim=True), y, -y),
    "masked_fill": lambda y: y.masked_fill(y < 0, 0.5),
    "lerp, addcmul, addcdiv": lambda y: torch.addcdiv(torch.addcmul(torch.lerp(y, y.exp(), 0.3), y, y), y, y.exp()),
    "hypot, atan2": lambda y: torch.hypot(y, y + 1) + torch.atan2(y, y.cosh()),
    "floor, fmod, remainder": lambda y: y - y.floor() + y.fmod(0.7) + y.remainder(0.3),
    "logical": lambda y: y * ((y > 0) & ~(y > 1)).to(y.dtype),
    "special": lambda y: torch.special.expit(y) + torch.special.erf(y) + torch.xlogy(y, y.abs() + 1) + torch.sinc(y),
    "activations": lambda y: F.logsigmoid(y) + F.softshrink(y) + F.threshold(y, 0.1, 0) + F.hardswish(y) + F.softsign(y),
    "in place": lambda y: y.clone().mul_(2).sub_(y).pow_(2).clamp_min_(0.01),
    "like": lambda y: y + torch.ones_like(y) - torch.zeros_like(y),
    "max of two": lambda y: torch.max(y, 0.5 * y) + torch.min(y, y * y) + torch.fmax(y, y.neg()),
    # operators made of others
    "expand_as": lambda y: y * y.mean((2, 3), keepdim=True).expand_as(y),
    "aliases": lambda y: torch.true_divide(torch.multiply(torch.subtract(y, 1), y), 3).view_as(y).reshape_as(y),
    "einsum": lambda y: torch.einsum("bchw,bc->bchw", y, y.mean((2, 3))),
    "einsum over positions": lambda y: torch.einsum("bchw,bchw->bc", y, y.sin())[:, :, None, None],
    "softmax over positions": lambda y: y * y.flatten(2).softmax(-1).view(y.shape),
    "deviation over positions": lambda y: (y - y.mean((2, 3), keepdim=True)) / (y.std((2, 3), keepdim=True) + 1),
    "normalise positions": lambda y: F.normalize(y.flatten(2), dim=2).view(y.shape),
    "extremes over positions": lambda y: y - y.flatten(2).max(2).values[..., None, None] * y.amin((2, 3), keepdim=True),
    "norm, prod, logsumexp over positions": lambda y: y * (y.norm(dim=(2, 3)) + y.flatten(2).logsumexp(2))[..., None, None],
    "layer norm over positions": lambda y: F.layer_norm(y, y.shape[2:]),
    "instance norm": lambda y: F.instance_norm(y),
    "interpolate": lambda y: F.interpolate(F.interpolate(y, size=(5, 7), mode="bicubic"), scale_factor=2, mode="nearest-exact"),
    "local pools": lambda y: F.lp_pool2d(y.abs(), 2, 2) + F.adaptive_max_pool2d(y, 4),
    "reflected": lambda y: F.pad(F.pad(y, (1, 1, 1, 1), mode="reflect"), (1, 0, 0, 1), mode="replicate"),
    "stack": lambda y: torch.stack([y, y.sin(), y.cos()]).amax(0),
    "concatenated positions": lambda y: torch.cat([y, y.sin()], 3).mean(3, keepdim=True),
    "gated halves": lambda y: F.glu(y, 1),
    "maxout": lambda y: y.unflatten(1, (2, -1)).amax(1),
    "one half of two": lambda y: y.unflatten(1, (2, -1))[:, 0] * y.unflatten(1, (2, -1))[:, 1].tanh(),
    "positions by positions": lambda y: (y.flatten(2) @ torch.ones(64, 64, dtype=y.dtype).softmax(1)).view(y.shape),
    "sorted and summed positions": lambda y: y.flatten(2).sort(2).values.cumsum(2).view(y.shape),
    # operators that mix channels, of those that are left
    "pooled over channels": lambda y: y * torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1).sum(1, keepdim=True),
    "centred over channels": lambda y: (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1).sqrt(),
    "of unit length": lambda y: F.normalize(y, dim=1) + F.normalize(y.movedim(1, -1), dim=-1).movedim(-1, 1),
    "max over channels": lambda y: y + y.max(dim=1, keepdim=True).values - torch.logsumexp(y, 1, keepdim=True),
    "positions by positions, of channels": lambda y: (y.flatten(2) @ (y.flatten(2).mT @ y.flatten(2)).softmax(-1)).view(
        y.shape
    ),
    "einsum over channels": lambda y: y * torch.einsum("bchw,bchw->bhw", y, y.sin())[:, None],
    # tensors that are the same for all channels
    "a grid of positions": lambda y: y * torch.linspace(0, 1, 8, dtype=y.dtype) + torch.eye(8, dtype=y.dtype),
    "drop a path": lambda y: y * torch.ones(y.shape[0], 1, 1, 1, dtype=y.dtype) / 0.9,
}
PINNED = {
    "picked": (lambda y: y[:, 3:9], "by number"),
    "rolled": (lambda y: y.roll(1, 1), "by number"),
    "unequal chunks": (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)).chunk(3, 1)[0], "unequal parts"),
    "unknown": (lambda y: y.softmax(1), "passes through softmax"),
    "a constant of channels": (lambda y: y * torch.arange(12.0).view(12, 1, 1).sin(), "no filter makes"),
    "a matrix of channels": (lambda y: torch.einsum("bchw,dc->bdhw", y, torch.ones(12, 12)), "no filter makes"),
    "an attention of channels": (lambda y: y * (y.flatten(2) @ y.flatten(2).mT).softmax(-1).sum((1, 2)), "passes through bmm"),
    "channels normalised": (lambda y: F.layer_norm(y.movedim(1, 3), (12,)).movedim(3, 1), "passes through layer_norm"),
    "a constant": (lambda y: y + torch.ones(12, 1, 1), "no filter makes"),
    "a weight of nobody": (lambda y: F.conv2d(y, torch.ones(12, 12, 1, 1)), "outside nn.Conv"),
}


@pytest.mark.parametrize("rule", FOLLOWED)
def test_what_a_rule_follows_is_cut_exactly(rule):
    torch.manual_seed(0)
    smaller = cut_exactly(Between(FOLLOWED[rule]).double().eval())
    assert smaller.first.out_channels < 12


def cut_exactly(model: nn.Module, layer: str = "first") -> nn.Module:
    """Cut the first unit of a layer's group, and hold the network against the masked one."""
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    channels = channel_map(model, x)
    group = channels.group(layer)
    assert group.prunable, group.why
    assert not group.fixed
    gone = channels.removed({group.name: range(1, group.units)})
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(x)
    assert not torch.equal(expected, model(x))
    smaller = cut(model, channels, gone)
    torch.testing.assert_close(smaller(x), expected, rtol=1e-9, atol=1e-9)
    return smaller


class Values(nn.Module):
    """Parameters and buffers with a value a channel, and how forward() comes to use them."""

    def __init__(self, use: Callable[["Values", torch.Tensor], torch.Tensor]):
        super().__init__()
        self.use = use
        self.vector, self.flat = nn.Parameter(torch.rand(12) + 0.5), nn.Parameter(torch.rand(1, 12, 1, 1))
        self.places = nn.Parameter(torch.rand(12, 8, 8))
        self.register_buffer("mean", torch.rand(12))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.use(self, y)


USES = {
    "a view": lambda s, y: y * s.vector.view(1, -1, 1, 1),
    "None": lambda s, y: (y - s.mean[None, :, None, None]) / s.vector[:, None, None],
    "unsqueezed and expanded": lambda s, y: y * s.vector.unsqueeze(-1).unsqueeze(-1).expand(12, 8, 8),
    "computed": lambda s, y: y * torch.sigmoid(s.vector * 3).reshape(1, 12, 1, 1) + s.flat.exp(),
    "permuted": lambda s, y: (y.permute(0, 2, 3, 1) * s.vector).permute(0, 3, 1, 2),
    "a value a channel and position": lambda s, y: y + s.places,
    "addcmul": lambda s, y: torch.addcmul(s.flat, y, s.flat),
    "prelu": lambda s, y: F.prelu(y, s.vector),
    "batch_norm": lambda s, y: F.batch_norm(y, s.mean, s.mean, s.vector, s.vector),
}


@pytest.mark.parametrize("use", USES)
def test_a_value_a_channel_goes_with_it(use):
    torch.manual_seed(0)
    model = Between(Values(USES[use])).double().eval()
    if use in ("unsqueezed and expanded", "computed"):  # sizes are written into forward(): labels follow, and the cut fails
        assert channel_map(model, torch.randn(1, 3, 10, 10, dtype=torch.float64)).axes["operator.vector"]
        return
    cut_exactly(model)


class Norms(nn.Module):
    """conv, norm, transposed conv, norm between the two convs."""

    def __init__(self, norm: Callable[[int], nn.Module], groups: int = 1):
        super().__init__()
        self.one, self.up, self.two = norm(12), nn.ConvTranspose2d(12, 12, 3, 2, groups=groups), norm(12)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.two(self.up(self.one(y)).relu())


NORMS = {
    "instance norm": lambda n: nn.InstanceNorm2d(n, affine=True),
    "instance norm, tracked": lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True),
    "group norm": lambda n: nn.GroupNorm(3, n),
    "batch norm without parameters": lambda n: nn.BatchNorm2d(n, affine=False),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_and_transposed_convs_are_cut(norm, groups):
    torch.manual_seed(0)
    smaller = cut_exactly(Between(Norms(NORMS[norm], groups)).double().eval())
    one = smaller.operator.one
    if isinstance(one, nn.GroupNorm):
        assert one.num_channels == 4 * one.num_groups < 12
    else:
        assert one.num_features < 12
    if groups == 1:
        cut_exactly(smaller, "operator.up")


@pytest.mark.parametrize("norm", [lambda n: nn.GroupNorm(1, n), lambda n: nn.GroupNorm(4, n, affine=False)])
def test_a_group_norm_that_cannot_lose_a_group_stays(norm):
    group = channel_map(Between(norm(12)).eval(), torch.randn(1, 3, 10, 10)).group("first")
    assert not group.prunable
    assert group.why


class Gate(nn.Module):
    """A gate over positions, made once for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(12, 1, 1)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y * self.gate(y).sigmoid()


def test_a_gate_for_all_channels_stays_and_ties_nothing():
    torch.manual_seed(0)
    model = Between(Gate()).double().eval()
    channels = channel_map(model, torch.randn(1, 3, 10, 10, dtype=torch.float64))
    assert channels.group("first").units == 12
    assert not channels.group("operator.gate").prunable
    cut_exactly(model)


@pytest.mark.parametrize("operator", PINNED)
def test_what_no_rule_follows_stays_and_says_why(operator):
    function, why = PINNED[operator]
    group = channel_map(Between(function).eval(), torch.randn(1, 3, 10, 10)).group("first")
    assert group.fixed
    assert why in group.why


class Mixes(nn.Module):
    """A layer that slimrank does not look into: it cuts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 6))

    def slice_channels(self, keep_in: torch.Tensor, keep_out: torch.Tensor) -> None:
        self.weight = nn.Parameter(self.weight.detach()[keep_in][:, keep_out])

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,cd->bdhw", y, self.weight.to(y).softmax(1))


def test_a_layer_that_cuts_itself_is_asked_to():
    torch.manual_seed(0)
    smaller = cut_exactly(Between(Mixes()).double().eval())
    assert smaller.operator.weight.shape == (11, 6)


def test_what_reads_a_weight_outside_its_layer_pins_what_it_reads():
    """No hook of the layer sees it: the channels could not be masked."""

    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(3 if first else 12, 12, 3) for first in (True, False, False))
            self.classifier, self.other = nn.Linear(12, 5), nn.Parameter(torch.zeros(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.conv2d(self.one(x).relu(), self.two.weight, self.other).relu()
            return self.classifier(self.three(x).mean((2, 3)))

    model, x = Borrows().double().eval(), torch.randn(1, 3, 10, 10, dtype=torch.float64)
    groups = {name: channel_map(model, x).group(name) for name in ("one", "two", "three")}
    assert not groups["one"].prunable
    assert "the weight of two is read outside its own forward()" in groups["one"].why
    assert cut_exactly(model, "two").two.out_channels == 11
    assert cut_exactly(model, "three").three.out_channels == 11
