"""What a conv or linear layer does, as a matrix product: rows of inputs (im2col) and of outputs, at chosen positions.

A row of a conv layer is one output position of one image; its columns run over the kernel's offsets, then over the input
channels of a conv group. A linear layer's rows are all vectors that it is given.
"""

from collections.abc import Iterator
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..network.resize import CONVS

Positions = tuple[Tensor, ...] | None  # an index along each axis of the output map; None: every position


def choose_positions(shape: torch.Size, n: int, generator: torch.Generator) -> Positions:
    """Draw `n` positions of an output map [.., height, width]; None where that is all of them."""
    total = prod(shape)
    if n >= total:
        return None
    return torch.unravel_index(torch.randperm(total, generator=generator)[:n].sort().values, shape)


def every_position(shape: torch.Size) -> tuple[Tensor, ...]:
    return torch.unravel_index(torch.arange(prod(shape)), shape)


def inputs(layer: nn.Module, x: Tensor, shape: torch.Size, positions: Positions) -> Tensor:
    """Rows of inputs, [conv groups, rows, columns]; `shape`: of the layer's output map, `x`: what it reads."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    assert isinstance(layer, CONVS)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any(layer._reversed_padding_repeated_twice):
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    at = [index.to(x.device) for index in positions or every_position(shape)]
    last = x.movedim(1, -1)  # [images, .., channels]
    strides, dilations = layer.stride, layer.dilation
    pieces = [
        last[(slice(None), *(i * s + o * d for i, s, o, d in zip(at, strides, offset, dilations, strict=True)))]
        for offset in product(*map(range, layer.kernel_size))
    ]
    rows = torch.stack(pieces, 2)  # [images, positions, offsets, channels]
    groups = layer.groups
    return rows.unflatten(3, (groups, -1)).movedim(3, 0).flatten(3).flatten(1, 2)


def outputs(layer: nn.Module, y: Tensor, positions: Positions) -> Tensor:
    """Rows of outputs, [conv groups, rows, filters of a group]."""
    if isinstance(layer, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    assert isinstance(layer, CONVS)
    last = y.movedim(1, -1)
    rows = last.flatten(1, -2) if positions is None else last[(slice(None), *(i.to(y.device) for i in positions))]
    return rows.unflatten(2, (layer.groups, -1)).movedim(2, 0).flatten(1, 2)


def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as [conv groups, columns, filters of a group], so that outputs = inputs @ matrix."""
    if isinstance(layer, nn.Linear):
        return weight.T[None]
    assert isinstance(layer, CONVS)
    return weight.movedim(1, -1).flatten(1).unflatten(0, (layer.groups, -1)).mT


def as_weight(layer: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`."""
    if isinstance(layer, nn.Linear):
        return matrix[0].T.contiguous()
    assert isinstance(layer, CONVS)
    rows = matrix.mT.flatten(0, 1)
    return rows.unflatten(1, (*layer.kernel_size, -1)).movedim(-1, 1).contiguous()


def blocks(x: Tensor, row_bytes: int, limit: int) -> Iterator[slice]:
    """Slices of the images whose rows take `limit` bytes at most (one image at least)."""
    step = max(1, limit // max(1, row_bytes))
    for start in range(0, len(x), step):
        yield slice(start, start + step)
