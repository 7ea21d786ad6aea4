"""Multiply-adds of each operation by hand, and whose they are."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

from slimrank.evaluate.macs import count


class Runs(nn.Module):
    """Runs one function on [1, 4, 6, 6]; `layer` where it has parameters."""

    def __init__(self, function, layer: nn.Module | None = None):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.layer is None else self.function(self.layer, x)


def rows(x: Tensor) -> Tensor:
    return x.flatten(2)  # [1, 4, 36]


OPERATIONS = {
    "conv1d": (lambda m, x: m(rows(x)), nn.Conv1d(4, 5, 3), 5 * 34 * 4 * 3),
    "conv2d": (lambda m, x: m(x), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 6 * 9 * 2 * 9),
    "conv3d": (lambda m, x: m(x[:, None]), nn.Conv3d(1, 3, 2), 3 * 3 * 5 * 5 * 8),
    "transposed, 1d": (lambda m, x: m(rows(x)), nn.ConvTranspose1d(4, 5, 3), 4 * 36 * 5 * 3),
    "transposed, 2d": (lambda m, x: m(x), nn.ConvTranspose2d(4, 6, 3, groups=2), 4 * 36 * 3 * 9),
    "transposed, 3d": (lambda m, x: m(x[:, None]), nn.ConvTranspose3d(1, 3, 2), 4 * 36 * 3 * 8),
    "linear": (lambda m, x: m(rows(x)), nn.Linear(36, 7), 4 * 7 * 36),
    "linear of a vector": (lambda m, x: m(x.flatten()), nn.Linear(144, 7, bias=False), 7 * 144),
    "matmul": (lambda x: rows(x) @ torch.ones(36, 7), None, 4 * 7 * 36),
    "mm": (lambda x: torch.mm(rows(x)[0], torch.ones(36, 7)), None, 4 * 7 * 36),
    "bmm": (lambda x: torch.bmm(rows(x), torch.ones(1, 36, 7)), None, 4 * 7 * 36),
    "addmm": (lambda x: torch.addmm(torch.ones(7), rows(x)[0], torch.ones(36, 7)), None, 4 * 7 * 36),
    "baddbmm": (lambda x: torch.baddbmm(torch.ones(1, 4, 7), rows(x), torch.ones(1, 36, 7)), None, 4 * 7 * 36),
    "mv": (lambda x: torch.mv(rows(x)[0], torch.ones(36)), None, 4 * 36),
    "dot": (lambda x: torch.dot(x.flatten(), x.flatten()), None, 144),
    "bilinear": (lambda m, x: m(rows(x), rows(x)), nn.Bilinear(36, 36, 5), 4 * 5 * (36 * 36 + 36)),
    "bilinear, one output": (lambda m, x: m(rows(x), rows(x)), nn.Bilinear(36, 36, 1), 4 * (36 * 36 + 36)),
    "attention": (lambda x: attend(rows(x), rows(x)[:, :3], rows(x)[:, :3, :5]), None, 4 * 3 * (36 + 5)),
    "attention of heads": (lambda x: attend(x, x, x), None, 4 * 6 * 6 * (6 + 6)),
    "einsum": (lambda x: torch.einsum("bcs,bds->bcd", rows(x), rows(x)), None, 4 * 4 * 36),
    "keywords": (lambda m, x: m(torch.linalg.vecdot(x, x, dim=1).flatten(1)), nn.Linear(36, 7), 36 * 7),
    "in place": (lambda x: torch.ones(4, 7).addmm_(rows(x)[0], torch.ones(36, 7)), None, 4 * 7 * 36),
}


@pytest.mark.parametrize(("function", "layer", "macs"), OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_costs_what_it_multiplies(function, layer, macs):
    counted = count(Runs(function, layer), (4, 6, 6))
    assert counted.macs == macs
    assert counted.params == (0 if layer is None else sum(p.numel() for p in layer.parameters()))
    assert set(counted.layers) == ({""} if layer is None else {"layer"})


def test_operations_without_a_formula_are_listed_most_often_first():
    counted = count(Runs(lambda x: x.relu().relu_().relu().sigmoid().mean((2, 3)) + 1), (4, 6, 6))
    listed = {name: n for name, n in counted.uncounted.items() if name in ("relu", "sigmoid", "mean", "add")}
    assert next(iter(listed)) == "relu"
    assert listed == {"relu": 3, "sigmoid": 1, "mean": 1, "add": 1}
    assert (counted.macs, counted.layers) == (0, {})


class Own(nn.Module):
    """A layer that tells its own MACs, of the layers inside it too."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2d(4, 4, 1)

    def macs(self, shape: tuple[int, ...]) -> int:
        return 1000 * shape[0] + shape[2]

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x).tanh()


def test_a_layer_that_tells_its_own_macs_is_believed_and_what_follows_is_counted():
    model = nn.Sequential(Own(), nn.Conv2d(4, 2, 1), nn.ReLU(), Own(), nn.Sequential(nn.Conv2d(4, 3, 6)))
    model[3] = nn.Conv2d(2, 4, 1)
    counted = count(model, (4, 6, 6))
    by_layer = {name: (layer.macs, layer.params) for name, layer in counted.layers.items()}
    assert by_layer == {
        "0": (4006, 0), "0.inside": (0, 20), "1": (36 * 8, 10), "3": (36 * 8, 12), "4.0": (3 * 4 * 36, 435),
    }  # fmt: skip
    assert counted.macs == 4006 + 2 * 36 * 8 + 432
    assert counted.uncounted["relu"] == 1
    assert not {"tanh", "conv2d", "convolution"} & set(counted.uncounted)


def test_what_tells_its_own_macs_is_believed_of_such_a_layer_inside_it_too():
    class Outer(Own):
        def __init__(self):
            super().__init__()
            self.inner, self.after = Own(), nn.Conv2d(4, 4, 1)

        def macs(self, shape: tuple[int, ...]) -> int:
            return 7

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.inner(x))

    counted = count(nn.Sequential(Outer(), nn.Conv2d(4, 2, 1)), (4, 6, 6))
    assert counted.layers["0"].macs == 7
    assert counted.layers["0.after"].macs == 0
    assert counted.layers["1"].macs == 36 * 8


def test_a_layer_that_runs_twice_costs_twice():
    shared = nn.Linear(6, 6, bias=False)
    counted = count(nn.Sequential(shared, nn.ReLU(), shared), (4, 6, 6))
    assert (counted.macs, counted.params) == (2 * 24 * 36, 36)
    assert counted.layers["0"].macs == 2 * 24 * 36


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_counting_leaves_the_model_as_it_was(training, dtype):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).to(dtype).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count(model, (4, 6, 6)).macs == 16 * 36
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_table_shows_each_layer_the_total_and_what_was_not_counted():
    text = str(count(nn.Sequential(nn.Conv2d(4, 50, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 2)), (4, 6, 6)))
    words = [line.split() for line in text.splitlines()]
    assert words[:4] == [
        ["layer", "MACs", "parameters"], ["0", "7,200", "250"], ["3", "3,600", "3,602"], ["total", "10,800", "3,852"],
    ]  # fmt: skip
    assert words[4][:2] == ["not", "counted:"]
    assert "relu x1" in text
