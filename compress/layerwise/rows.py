"""What a conv or linear layer does, as a matrix product: rows of inputs (im2col) and of outputs, at chosen positions.

A row of a conv layer is one output position of one image; its columns run over the kernel's offsets, then over the input
channels of a conv group. A linear layer's rows are all vectors that it is given.
"""

from itertools import product
from math import prod
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.layers import is_plain

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Positions = tuple[Tensor, ...] | None  # an index along each axis of the output map; None: every position


def has_rows(layer: nn.Module) -> TypeGuard[Layer]:
    """Whether rows say what a layer does: it is a conv or a linear layer, and no class of the user's own that does more."""
    return isinstance(layer, Layer) and is_plain(layer)


def choose_positions(shape: torch.Size, n: int, generator: torch.Generator) -> Positions:
    """Draw `n` positions of an output map [.., height, width]; None where that is all of them."""
    total = prod(shape)
    if n >= total:
        return None
    return torch.unravel_index(torch.randperm(total, generator=generator)[:n].sort().values, shape)


def every_position(shape: torch.Size) -> tuple[Tensor, ...]:
    return torch.unravel_index(torch.arange(prod(shape)), shape)


def inputs(layer: Layer, x: Tensor, shape: torch.Size, positions: Positions) -> Tensor:
    """Rows of inputs, [conv groups, rows, columns]; `shape`: of the layer's output map, `x`: what it reads."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(layer._reversed_padding_repeated_twice):
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    at = [index.to(x.device) for index in positions or every_position(shape)]
    pieces = []
    for offsets in product(*map(range, layer.kernel_size)):
        steps = zip(at, layer.stride, offsets, layer.dilation, strict=True)
        pieces.append(_picked(x, [index * stride + offset * dilation for index, stride, offset, dilation in steps]))
    rows = torch.stack(pieces, 2)  # [images, positions, offsets, channels]
    return _by_group(rows, layer.groups)


def outputs(layer: Layer, y: Tensor, positions: Positions, kept: Tensor | None = None) -> Tensor:
    """Rows of outputs, [conv groups, rows, filters of a group]; `kept`: the numbers of those of `y` that the layer has."""
    if isinstance(layer, nn.Linear):
        y = y if kept is None else y[..., kept]
        return y.reshape(1, -1, y.shape[-1])
    at = None if positions is None else [index.to(y.device) for index in positions]
    rows = y.movedim(1, -1).reshape(len(y), -1, y.shape[1]) if at is None else _picked(y, at)
    return _by_group(rows if kept is None else rows[..., kept], layer.groups)


def _by_group(rows: Tensor, groups: int) -> Tensor:
    """From [images, positions, .., channels] to [conv groups, images * positions, ..  * channels of a group]."""
    images, positions = rows.shape[:2]
    split = rows.view(images, positions, *rows.shape[2:-1], groups, rows.shape[-1] // groups)
    return split.movedim(-2, 0).reshape(groups, images * positions, -1)


def _picked(values: Tensor, at: list[Tensor]) -> Tensor:
    """Values [images, channels, ..] at some positions, [images, positions, channels]."""
    every: Any = slice(None)
    return values.movedim(1, -1)[(every, *at)]


def as_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """A layer's weight as [conv groups, columns, filters of a group], so that outputs = inputs @ matrix."""
    if isinstance(layer, nn.Linear):
        return weight.T[None]
    return weight.movedim(1, -1).flatten(1).view(layer.groups, -1, weight[0].numel()).mT


def as_weight(layer: Layer, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`."""
    if isinstance(layer, nn.Linear):
        return matrix[0].T.contiguous()
    rows = matrix.mT.flatten(0, 1)
    return rows.view(len(rows), *layer.kernel_size, -1).movedim(-1, 1).contiguous()
