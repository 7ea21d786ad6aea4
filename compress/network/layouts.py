"""How a `SubspaceLinear` computes its logits: a plain function a layout, of tensors only.

Rows are the rows of the layer's weight [classes, k], group after group of classes. The operators are chosen for the ONNX
files they make: ONNX Runtime copies a tile of adjacent features as fast as a single one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def tile_width(index: Tensor, in_features: int) -> int:
    """Find the largest power of two in whose aligned runs every group of classes reads; index [class groups, k]."""
    width = 1
    while in_features % (2 * width) == 0 and index.shape[1] % (2 * width) == 0:
        runs = index.view(len(index), -1, 2 * width)
        first = runs[..., :1] // (2 * width) * (2 * width)
        if not bool((runs == first + torch.arange(2 * width, device=runs.device)).all()):
            break
        width *= 2
    return width


def members(sizes: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """List the rows of each group of classes, [class groups, most classes a group]: a smaller group's last row stands twice.

    The second tensor is 0, and -inf where a row stands for the second time.
    """
    sized = torch.tensor(sizes, device=device)
    every = torch.arange(int(sized[0]), device=device)
    rows = (sized.cumsum(0) - sized)[:, None] + torch.minimum(every, sized[:, None] - 1)
    return rows, torch.where(every < sized[:, None], 0.0, -torch.inf)


def dense_matrix(weight: Tensor, rows: Tensor, in_features: int) -> Tensor:
    """Write weights [classes, k] of the features rows [classes, k] into a matrix [classes, features] of zeros."""
    return weight.new_zeros(len(weight), in_features).scatter_add(1, rows, weight)


def gather(x: Tensor, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Copy the features rows [classes, k] one by one, for each class its own, and multiply them alone."""
    gathered = x.index_select(1, rows.reshape(-1)).view(-1, *rows.shape)
    return (gathered * weight).sum(-1) + bias


def tiled(x: Tensor, tiles: Tensor, width: int, weight: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
    """Copy tiles [class groups * tiles a group] of `width` features and multiply them densely, group by group of classes.

    `sizes`: the classes of each group.
    """
    copied = x.view(-1, x.shape[1] // width, width).index_select(1, tiles).view(-1, len(sizes) * weight.shape[1])
    parts = zip(copied.split(weight.shape[1], 1), weight.split(sizes), bias.split(sizes), strict=True)
    return torch.cat([F.linear(part, rows, constant) for part, rows, constant in parts], 1)


def int8(x: Tensor, weight: Tensor, step: Tensor, bias: Tensor) -> Tensor:
    """Round x [images, m] to 256 levels and multiply by int8 weight [m, classes] of steps [classes], as ONNX Runtime does."""
    if torch.onnx.is_in_onnx_export():
        shapes = (x.shape, (), ())
        dtypes = (torch.uint8, torch.float32, torch.uint8)
        levels, scale, zero = torch.onnx.ops.symbolic_multi_out(
            "::DynamicQuantizeLinear", (x,), dtypes=dtypes, shapes=shapes, version=20
        )
        size = (x.shape[0], weight.shape[1])
        total = torch.onnx.ops.symbolic("::MatMulInteger", (levels, weight, zero), dtype=torch.int32, shape=size, version=20)
        return total.float() * (scale * step) + bias
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-30)
    zero = (-low / scale).round().clamp(0, 255)
    levels = ((x / scale).round() + zero).clamp(0, 255) - zero
    return (levels @ weight.to(x.dtype)) * (scale * step) + bias


def int8_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [classes, features] to int8: [features, classes], and the step of each class, [classes]."""
    step = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / step[:, None]).round().to(torch.int8).T.contiguous(), step


def probed(
    x: Tensor, best: Tensor, rows: Tensor, tiles: Tensor, width: int, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute, of each image, the logits of some groups of classes only, by `tiled`.

    best [images * probe]: the groups, image after image; rows [images * probe, classes a group]: their rows; tiles
    [class groups * tiles a group]. Returns logits and rows, both [images, probe * classes a group].
    """
    images, k = x.shape[0], weight.shape[1]
    per_group = k // width
    own = tiles.view(-1, per_group).index_select(0, best).view(images, -1)
    own = own + x.shape[1] // width * torch.arange(images, device=x.device).unsqueeze(1)
    copied = x.reshape(-1, width).index_select(0, own.flatten()).view(-1, 1, k)
    groups, most = len(tiles) // per_group, rows.shape[1]
    if len(weight) == groups * most:  # a copy of whole groups is several times as fast as one row by row
        weights, biases = weight.view(groups, most, k).index_select(0, best), bias.view(groups, most).index_select(0, best)
    else:
        weights, biases = weight.index_select(0, rows.flatten()).view(-1, most, k), bias[rows]
    logits = (copied @ weights.transpose(1, 2)).squeeze(1) + biases
    return logits.view(images, -1), rows.view(images, -1)


def elsewhere(least: Tensor, classes: int) -> Tensor:
    """Give every class one less than the least logit that was computed: least [images, 1] -> [images, classes]."""
    return (least - 1).expand(-1, classes)


def rescored(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, count: int) -> Tensor:
    """Replace the `count` largest of the logits y [images, classes] by weight x + bias, weight [classes, features]."""
    best = y.topk(count, 1, sorted=False).indices
    return y.scatter(1, best, exact(x, best, weight, bias).to(y.dtype))


def exact(x: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Compute, for each image, its own rows [images, count] of weight x + bias; both must be there."""
    assert weight is not None
    assert bias is not None
    chosen = rows.flatten()
    own = weight.index_select(0, chosen).view(-1, rows.shape[1], weight.shape[1])
    return (x.unsqueeze(1) @ own.transpose(1, 2)).squeeze(1) + bias.index_select(0, chosen).view(-1, rows.shape[1])


def moved(x: Tensor, index: Tensor) -> Tensor:
    """Reorder columns, x[:, index], as GatherElements: ONNX Runtime does it several times as fast as a Gather of columns."""
    return x.gather(1, index.expand(x.shape[0], -1))
