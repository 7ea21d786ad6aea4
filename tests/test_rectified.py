"""What reconstruction asks of a layer in front of a residual sum and of a ReLU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimrank.compress.pruning.reconstruct import reconstruct

from .test_reconstruct import batches, halved, logit_error, network, pictures
from .toy_models import lively


class Residual(nn.Module):
    """Blocks whose sums are narrowed as a whole; the shortcut of the second is a conv that runs last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = (
            nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(5)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(5))
        self.short = nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for number, (first, second, norm) in enumerate(zip(self.first, self.second, self.norms, strict=True)):
            y = norm(second(F.relu(first(x))))
            x = F.relu(y + (self.short(x) if number == 1 else x))
        return self.classifier(x.mean((2, 3)))


@pytest.mark.parametrize("part", ["Residual.at", "Rectified.behind"])
def test_a_residual_sum_is_asked_of_the_last_layer_before_it_as_its_relu_leaves_it(part, monkeypatch):
    torch.manual_seed(0)
    model = lively(Residual(), pictures(32))
    channels, gone, smaller = halved(model)
    images, fresh = batches(pictures(300)), pictures(100, seed=9)
    found = reconstruct(model, smaller, channels, gone, images)
    monkeypatch.setattr(f"slimrank.compress.pruning.reconstruct.{part}", lambda *_: None)
    without = reconstruct(model, smaller, channels, gone, images)
    assert logit_error(model, found.model, fresh) < logit_error(model, without.model, fresh)
    assert logit_error(model, without.model, fresh) < logit_error(model, smaller, fresh)


@pytest.mark.parametrize("kind", ["plain", "relu6", "groups"])
def test_what_a_relu_cuts_off_is_not_asked_for(kind, monkeypatch):
    torch.manual_seed(0)
    relu, groups = nn.ReLU6 if kind == "relu6" else nn.ReLU, 4 if kind == "groups" else 1
    front = [nn.Conv2d(16, 16, 3, padding=1), relu()] if kind == "groups" else []  # groups go whole: what is left reads this
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), relu(), *front, nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(16), relu(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ]  # fmt: skip
    model = lively(nn.Sequential(*layers), pictures(32))
    with torch.no_grad():
        model[-5].bias += 2 if kind == "relu6" else -0.5
        model[-5].weight *= 3 if kind == "relu6" else 1
    channels, gone, smaller = halved(model)
    images, fresh = batches(pictures(300)), pictures(100, seed=9)

    kept = [i for i, u in enumerate(channels.writes[str(2 + len(front))].tolist()) if not gone[u]]
    found = reconstruct(model, smaller, channels, gone, images)
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    linear = reconstruct(model, smaller, channels, gone, images)
    with torch.inference_mode():
        whole = model[:-3](fresh)[:, kept]
        errors = [float((repaired.model[:-3](fresh) - whole).square().mean()) for repaired in (found, linear)]
    assert errors[0] < 0.98 * errors[1]


def test_rows_that_exceed_half_of_the_memory_are_fitted_without_the_relu(monkeypatch):
    model, images = network(), batches(pictures(300))
    channels, gone, smaller = halved(model)
    roomy = reconstruct(model, smaller, channels, gone, images)
    size = 300 * 64 * 4 * smaller[3].weight[0].numel()  # of images, positions, bytes, columns
    fit, tight = (reconstruct(model, smaller, channels, gone, images, memory=memory) for memory in (2 * size, 2 * size - 1))
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    linear = reconstruct(model, smaller, channels, gone, images)
    assert torch.equal(fit.model[3].weight, roomy.model[3].weight)
    assert torch.equal(tight.model[3].weight, linear.model[3].weight)
    assert not torch.equal(fit.model[3].weight, linear.model[3].weight)


def test_a_layer_without_a_place_for_a_mean_is_fitted_without_the_relu(monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.Conv2d(12, 10, 3, bias=False), nn.ReLU(), nn.Flatten()]
    model, images = lively(nn.Sequential(*layers, nn.Linear(160, 5)), pictures(32)), batches(pictures(300))
    channels, gone, smaller = halved(model)
    found = reconstruct(model, smaller, channels, gone, images)
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    linear = reconstruct(model, smaller, channels, gone, images)
    assert found.layers[0].ridge is not None
    assert torch.equal(found.model[2].weight, linear.model[2].weight)


def test_what_a_relu_cuts_off_behind_a_linear_layer_and_its_norm_is_not_asked_for(monkeypatch):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU()]
    model = lively(nn.Sequential(*layers, nn.Linear(16, 5)), pictures(32))
    with torch.no_grad():
        model[4].bias -= 0.5
    channels, gone, smaller = halved(model)
    images, fresh = batches(pictures(2000)), pictures(500, seed=9)
    found = reconstruct(model, smaller, channels, gone, images)
    monkeypatch.setattr("slimrank.compress.pruning.reconstruct.Rectified.behind", lambda *_: None)
    linear = reconstruct(model, smaller, channels, gone, images)
    kept = [i for i, u in enumerate(channels.writes["3"].tolist()) if not gone[u]]
    with torch.inference_mode():
        whole = model[:6](fresh)[:, kept]
        errors = [float((repaired.model[:6](fresh) - whole).square().mean()) for repaired in (found, linear)]
    assert errors[0] < 0.98 * errors[1]
