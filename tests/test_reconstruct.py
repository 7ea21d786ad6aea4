"""Least-squares reconstruction: exact properties, a slow reference, torchvision's families, and what it refuses."""

import copy
from math import inf

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.layerwise.prefix import Store
from slimrank.compress.pruning.reconstruct import reconstruct
from slimrank.compress.pruning.select import uniform
from slimrank.compress.pruning.surgery import cut
from slimrank.errors import SlimrankError

from .toy_models import Branching, PadsFirst, lively


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(10 * 16, 14), nn.ReLU(), nn.Linear(14, 5),
    ]  # fmt: skip
    return lively(nn.Sequential(*layers), pictures(32))


def pictures(n: int, size: int = 8, seed: int = 5) -> Tensor:
    """Images whose neighbouring pixels are alike, as a picture's are."""
    x = torch.randn(n, 3, size + 4, size + 4, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(x, 5, 1) * 5


def batches(images: Tensor, size: int = 20) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.full((len(part),), -1)) for part in images.split(size)]


def halved(model: nn.Module, size: int = 8, share: float = 0.5, dtype: torch.dtype = torch.float32):
    channels = channel_map(model, torch.randn(1, 3, size, size, dtype=dtype))
    gone = channels.removed(uniform(model, channels, share).keep)
    return channels, gone, cut(model, channels, gone)


def logit_error(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        whole = dense.eval()(images)
        return float((other.eval()(images) - whole).square().mean() / whole.var())


def test_nothing_cut_changes_nothing():
    model = network()
    channels = channel_map(model, torch.randn(1, 3, 8, 8))
    found = reconstruct(model, model, channels, channels.removed({}), batches(pictures(40)))
    assert found.layers == []
    assert all(torch.equal(a, b) for a, b in zip(found.model.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("layer", "twin"), [(0, 7), (3, 7), (7, 5)], ids=["conv and BatchNorm", "conv, flattened", "hidden linear"]
)
def test_a_duplicated_channel_is_cut_for_nothing(layer, twin):
    model = network().double()
    with torch.no_grad():
        for tensor in [*model[layer].parameters(), *(model[1].state_dict().values() if layer == 0 else [])]:
            if tensor.dim():
                tensor[2] = tensor[twin]
    channels = channel_map(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    gone = channels.removed({str(layer): [i for i in range(model[layer].weight.shape[0]) if i != 2]})
    smaller = cut(model, channels, gone)
    images = pictures(400).double()
    repaired = reconstruct(model, smaller, channels, gone, batches(images)).model
    fresh = pictures(50, seed=6).double()
    assert logit_error(model, smaller, fresh) > 1e-3
    assert logit_error(model, repaired, fresh) < 1e-12


def test_a_linear_network_is_repaired_to_the_best_fit_of_what_is_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Linear(20, 6)).double()
    images = torch.randn(600, 3, 4, 4, dtype=torch.float64)
    channels = channel_map(model, images[:1])
    gone = channels.removed({"1": list(range(11))})
    found = reconstruct(model, cut(model, channels, gone), channels, gone, batches(images, 100))
    with torch.inference_mode():
        hidden = model[1](images.flatten(1))[:, :11]
        ones = torch.ones(600, 1, dtype=torch.float64)
        best = torch.linalg.lstsq(torch.cat([hidden, ones], 1), model(images)).solution
    ridge = found.layers[0].ridge
    torch.testing.assert_close(found.model[2].weight, best[:-1].T, rtol=0, atol=20 * ridge)
    torch.testing.assert_close(found.model[2].bias, best[-1], rtol=0, atol=20 * ridge)


def by_hooks(dense: nn.Module, smaller: nn.Module, channels, gone: Tensor, images: Tensor, found) -> nn.Module:
    """Slow reference: both networks run whole for every layer, im2col by F.unfold, at the ridges that were chosen."""
    model = copy.deepcopy(smaller).eval()
    names = list(dict(model.named_modules()))
    for fit in found.layers:
        layer = model.get_submodule(fit.layer)
        seen: dict[str, Tensor] = {}
        hooks = [
            layer.register_forward_hook(lambda _m, x, _y, seen=seen: seen.update(x=x[0])),
            dense.get_submodule(fit.layer).register_forward_hook(lambda _m, _x, y, seen=seen: seen.update(y=y)),
        ]
        with torch.no_grad():
            model(images), dense(images)
        for hook in hooks:
            hook.remove()
        x, y = seen["x"].double(), seen["y"].double()
        kept = [i for i, u in enumerate(channels.writes[fit.layer].tolist()) if not gone[u]]
        if isinstance(layer, nn.Linear):
            x, y = x.flatten(0, -2), y.flatten(0, -2)
        else:
            x = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).movedim(1, -1).flatten(0, 1)
            y = y.movedim(1, -1).flatten(0, -2)
        y = y[:, kept]
        w = layer.weight.detach().double().flatten(1).T
        centred_x, centred_y = x - x.mean(0), y - y.mean(0)
        h, g = centred_x.T @ centred_x / len(x), centred_x.T @ centred_y / len(x)
        if fit.ridge is not None and fit.ridge != inf:
            w = w + torch.linalg.solve(h + fit.ridge * h.diagonal().mean() * torch.eye(len(h)), g - h @ w)
        if fit.ridge is not None:
            layer.weight.data = w.T.reshape(layer.weight.shape).float()
            offset = (y.mean(0) - x.mean(0) @ w).float()
            if layer.bias is not None:
                layer.bias.data = offset
            else:
                model.get_submodule(names[names.index(fit.layer) + 1]).running_mean -= offset
    return model


def test_a_repaired_network_can_be_trained():
    model = network()
    channels, gone, smaller = halved(model)
    repaired = reconstruct(model, smaller, channels, gone, batches(pictures(40))).model
    repaired.train()(pictures(8)).sum().backward()
    assert all(parameter.grad is not None for parameter in repaired.parameters())
    assert all(parameter.grad is None for parameter in (*model.parameters(), *smaller.parameters()))


class Tokens(nn.Module):
    """Linear layers on the positions of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden, self.classifier = nn.Conv2d(3, 12, 2, stride=2), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)).flatten(2).transpose(1, 2)
        return self.classifier(F.relu(self.hidden(x))).mean(1)


class NotAlone(nn.Module):
    """A BatchNorm that is not the only one to read the conv before it: nothing of it may move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, bias=False)
        self.norm, self.classifier = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu(self.stem(x)))
        return self.classifier((F.relu(self.norm(x)) + x.sigmoid()).mean((2, 3)))


def test_a_norm_that_does_not_read_a_layer_alone_stays():
    torch.manual_seed(0)
    model = lively(NotAlone(), pictures(32))
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(100)))
    assert found.layers[0].layer == "conv"
    assert found.layers[0].ridge is not None
    assert torch.equal(found.model.norm.running_mean, smaller.norm.running_mean)


@pytest.mark.parametrize(
    ("make", "layers", "positions"),
    [(network, ["3", "7", "9"], [64, 1, 1]), (Tokens, ["hidden", "classifier"], [16, 16])], ids=["a network", "of tokens"],
)  # fmt: skip
@pytest.mark.parametrize("n", [300, 7])
def test_reconstruction_is_the_slow_reference(make, layers, positions, n, monkeypatch):
    """A fifth of the images, rounded up, is held out whole."""
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    torch.manual_seed(0)
    model, images = lively(make(), pictures(32)), pictures(n)
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(images, 3 if n == 7 else 20))
    assert found.images == n
    assert [fit.layer for fit in found.layers] == layers
    drawn = 50_000 // 300 if n == 300 else 64  # positions of an image, of 64
    assert [fit.rows for fit in found.layers] == [(n - -(-n // 5)) * min(drawn, each) for each in positions]
    if n == 7:
        return
    slow = by_hooks(model, smaller, channels, gone, images, found).state_dict()
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, slow[name], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("memory", [0, 2**17])
def test_what_does_not_fit_the_memory_lies_in_files(memory, monkeypatch):
    model = network()
    channels, gone, smaller = halved(model)
    usual = reconstruct(model, smaller, channels, gone, batches(pictures(60)))
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Store", lambda _: Store(memory))
    found = reconstruct(model, smaller, channels, gone, batches(pictures(60)))
    assert found.layers == usual.layers
    assert torch.equal(found.model[9].weight, usual.model[9].weight)


def test_a_full_disk_is_one_line(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = network()
    channels, gone, smaller = halved(model)
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Store", lambda _: Store(0))
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SlimrankError, match=r"cannot keep activations in .*No space left.*`memory`"):
        reconstruct(model, smaller, channels, gone, batches(pictures(60)))


FAMILIES = {
    "resnet18": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "regnet_x_400mf": 64,
    "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "googlenet": 64, "mnasnet0_5": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_no_layer_gets_worse_and_the_logits_get_better(name):
    torch.manual_seed(0)
    size = FAMILIES[name]
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = lively(models.get_model(name, num_classes=10, **extra), pictures(16, size)).eval()
    channels, gone, smaller = halved(model, size, 0.7)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(40, size), 20))
    assert found.layers
    assert all(fit.after <= fit.before for fit in found.layers)
    fresh = pictures(16, size, seed=7)
    assert logit_error(model, found.model, fresh) < logit_error(model, smaller, fresh)


def test_images_that_are_all_alike_leave_the_network_as_it_is_or_better():
    model = network()
    channels, gone, smaller = halved(model)
    same = torch.zeros(20, 3, 8, 8)
    found = reconstruct(model, smaller, channels, gone, batches(same))
    assert all(torch.isfinite(tensor).all() for tensor in found.model.state_dict().values())
    assert logit_error(model, found.model, pictures(20)) < 2 * logit_error(model, smaller, pictures(20))


def test_a_layer_whose_outputs_do_not_vary_is_left_as_it_is():
    model = network()
    nn.init.zeros_(model[3].weight)
    channels, gone, smaller = halved(model)
    still = reconstruct(model, smaller, channels, gone, batches(pictures(60))).layers[0]
    assert (still.layer, still.ridge, still.after) == ("3", None, still.before)


def test_fewer_positions_than_inputs_are_said():
    model = network()
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(6)))
    assert "layers have more inputs than these images have positions" in found.note


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.again(F.relu(self.again(F.relu(self.stem(x)))))).mean((2, 3)))


def test_a_layer_that_is_called_twice_is_left_and_named():
    torch.manual_seed(0)
    model = Twice()
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(60)))
    assert found.left == {"again": "it is called twice"}
    assert torch.equal(found.model.again.weight, smaller.again.weight)
    assert [fit.layer for fit in found.layers] == ["classifier"]


def test_activations_that_are_not_finite_are_named_by_layer():
    model = network()
    channels, gone, smaller = halved(model)
    images = pictures(40)
    images[3, 0, 0, 0] = torch.inf
    with pytest.raises(SlimrankError, match="`reconstruct`: 3 meets NaN or infinite activations"):
        reconstruct(model, smaller, channels, gone, batches(images))


def test_one_image_is_too_few():
    model = network()
    channels, gone, smaller = halved(model)
    with pytest.raises(SlimrankError, match="needs 2 images at least"):
        reconstruct(model, smaller, channels, gone, batches(pictures(1)))


def test_a_forward_that_cannot_be_followed_is_refused():
    model = Branching()
    channels, gone, smaller = halved(model, share=0.8)
    with pytest.raises(SlimrankError, match=r"torch\.fx cannot follow"):
        reconstruct(model, smaller, channels, gone, batches(pictures(20)))


def test_a_conv_of_ones_own_class_is_fitted():
    torch.manual_seed(0)
    layers = [
        PadsFirst(3, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(), PadsFirst(12, 12, 3, groups=12, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), PadsFirst(12, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ]  # fmt: skip
    model = lively(nn.Sequential(*layers), pictures(32))
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, batches(pictures(200)))
    assert [fit.layer for fit in found.layers] == ["3", "6", "9"]
    assert found.left == {}
    assert [type(module) for module in found.model] == [type(module) for module in smaller]
    fresh = pictures(50, seed=6)
    assert logit_error(model, found.model, fresh) < logit_error(model, smaller, fresh)


def test_where_what_is_lost_is_unlike_what_is_left_its_mean_alone_is_put_back():
    """Independent inputs, of which half are cut: nothing but the mean can be told from the others."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(12))
        model[2].weight.copy_(torch.randn(2, 12, generator=generator))
    images = torch.randn(40, 3, 2, 2, dtype=torch.float64, generator=generator) + 3
    channels = channel_map(model, images[:1])
    gone = channels.removed({"1": list(range(6))})
    smaller = cut(model, channels, gone)
    found = reconstruct(model, smaller, channels, gone, batches(images))
    assert found.layers[0].ridge == inf
    assert torch.equal(found.model[2].weight, smaller[2].weight)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(images).mean(0), model(images).mean(0))
