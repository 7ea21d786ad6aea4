"""What a layer does as a matrix product, and least squares from moments or from few rows."""

import pytest
import torch
from torch import Tensor, nn

from slimrank.compress.layerwise.few_rows import FewRows
from slimrank.compress.layerwise.moments import Moments
from slimrank.compress.layerwise.rows import as_matrix, as_weight, choose_positions, inputs, outputs

LAYERS = {
    "conv": nn.Conv2d(6, 8, 3, padding=1),
    "stride, dilation": nn.Conv2d(6, 8, (3, 2), stride=2, padding=(2, 1), dilation=(2, 1), bias=False),
    "grouped": nn.Conv2d(6, 9, 3, groups=3, padding=1),
    "depthwise": nn.Conv2d(6, 6, 5, groups=6, padding=2),
    "reflected": nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "conv1d": nn.Conv1d(6, 8, 3, padding=1),
    "conv3d": nn.Conv3d(6, 8, 2),
    "linear": nn.Linear(6, 8),
}


def read(layer: nn.Module, images: int = 3) -> Tensor:
    sides = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[type(layer)]
    return torch.randn(images, 6, *[7] * sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("drawn", [False, True], ids=["every position", "drawn positions"])
def test_rows_times_matrix_are_the_layer(layer, drawn):
    x = read(layer)
    y = layer(x)
    positions = choose_positions(y.shape[2:], 3, torch.Generator().manual_seed(0)) if drawn and y.dim() > 2 else None
    made = inputs(layer, x, y.shape[2:], positions) @ as_matrix(layer, layer.weight)
    if layer.bias is not None:
        made = made + layer.bias.view(len(made), 1, -1)
    torch.testing.assert_close(made, outputs(layer, y, positions), rtol=1e-4, atol=1e-5)
    assert torch.equal(as_weight(layer, as_matrix(layer, layer.weight)), layer.weight)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("mean", ["centred", "raw"])
@pytest.mark.parametrize("kind", [Moments, FewRows], ids=["moments", "rows"])
def test_both_ways_solve_the_normal_equations(kind, mean, ridge):
    torch.manual_seed(0)
    x, y = torch.randn(2, 40, 7, dtype=torch.float64) + 1, torch.randn(2, 40, 3, dtype=torch.float64) - 1
    start = torch.randn(2, 7, 3, dtype=torch.float64)
    sums = kind.around(x, y) if kind is Moments else kind()
    for rows in (slice(0, 25), slice(25, 40)):
        sums.add(x[:, rows], y[:, rows])
    normal = getattr(sums, mean)()
    if mean == "centred":
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    h, g = x.mT @ x / 40, x.mT @ y / 40
    scale = h.diagonal(dim1=1, dim2=2).mean(1)
    system = h + ridge * scale[:, None, None] * torch.eye(7, dtype=torch.float64)
    solved = normal.solve(start, ridge)
    torch.testing.assert_close(system @ (solved - start), g - h @ start)
    torch.testing.assert_close(normal.errors(solved, normal.offset(solved)), ((y - x @ solved) ** 2).mean(1))
