"""A linear layer in which a class reads only some of the features (Badola et al., "Decomposing the Deep"), and its layouts.

The classes are divided into groups; the classes of a group read the same k features. The paper's decomposed classifier is
the case of one class a group. What makes a group fast is that its features lie in tiles of adjacent ones: then a copy of a
few tiles and one small dense product serve the whole group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SlimrankError, near

LAYOUTS = ("dense", "gather", "tiled")


def sizes(classes: int, groups: int) -> list[int]:
    """Classes divided into groups as evenly as can be; the larger groups come first."""
    least, more = divmod(classes, groups)
    return [least + 1] * more + [least] * (groups - more)


def check_tile(tile: int | None) -> None:
    if tile is not None and (tile < 1 or tile & (tile - 1)):
        raise SlimrankError(f"--tile is {tile}, must be a power of two, as 8 or 16")


class SubspaceLinear(nn.Module):
    """Linear layer of `in_features` features, the classes of group g reading the features `index[g]`.

    weight [classes, k] and bias [classes] lie group after group, group sizes are `sizes(classes, groups)`; index
    [groups, k] rises within a group. `order` [classes]: the class of each row (None: rows are classes in their order).
    `reorder` [in_features]: the input feature that comes to each place before anything is read (None: as they come).

    Layouts are exact rewritings of one another: `dense` writes the weights back into a [classes, features] matrix with
    zeros (no fewer MACs), `gather` reads k features for each class and multiplies them alone, `tiled` copies each group's
    tiles and multiplies them densely, a group at a time.

    `rescore` N: the N classes with the largest subspace logits are given the logits of `full_weight` [classes, in_features]
    and `full_bias` (rows as in weight) instead: N * in_features MACs more an image.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    index: Tensor
    order: Tensor | None
    reorder: Tensor | None
    full_weight: Tensor | None
    full_bias: Tensor | None
    tile: int  # how many adjacent features are copied at once
    _tiles: Tensor
    _back: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        index: Tensor,
        bias: Tensor,
        in_features: int,
        layout: str = "gather",
        *,
        order: Tensor | None = None,
        reorder: Tensor | None = None,
        full: tuple[Tensor, Tensor] | None = None,
        rescore: int = 0,
    ):
        super().__init__()
        if layout not in LAYOUTS:
            raise SlimrankError(f"no layout {layout!r}; {near(layout, LAYOUTS)}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < in_features:
            raise SlimrankError(f"subspace indices must lie in 0..{in_features - 1}")
        if not 0 <= rescore <= len(weight):
            raise SlimrankError(f"--rescore is {rescore}, the classifier has {len(weight)} classes; choose 1 to {len(weight)}")
        if rescore and full is None:
            raise SlimrankError("--rescore needs the dense layer's weights; specialise the dense checkpoint")
        self.in_features, self.layout, self.rescore = in_features, layout, rescore
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.register_buffer("index", index.detach().clone())
        self.register_buffer("order", None if order is None else order.detach().clone())
        self.register_buffer("reorder", None if reorder is None else reorder.detach().clone())
        self.register_buffer("full_weight", full[0].detach().clone() if full and rescore else None)
        self.register_buffer("full_bias", full[1].detach().clone() if full and rescore else None)
        self._arrange()

    def _arrange(self) -> None:
        """What forward() needs and the index tells: the tiles' width and numbers, and each class's row."""
        self.tile = self._tile()
        self.register_buffer("_tiles", self.index[:, :: self.tile].reshape(-1) // self.tile, persistent=False)
        self.register_buffer("_back", None if self.order is None else self.order.argsort(), persistent=False)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def sizes(self) -> list[int]:
        return sizes(len(self.weight), len(self.index))

    def indices(self) -> Tensor:
        """[classes, k]: the input features that each class reads, classes in their own order, rising."""
        wide = self.wide()
        rows = (wide if self.reorder is None else self.reorder[wide]).sort(1).values
        return rows if self._back is None else rows[self._back]

    def wide(self) -> Tensor:
        """[classes, k]: the index of every row."""
        if len(self.index) == len(self.weight):
            return self.index
        return torch.cat([row.expand(size, -1) for row, size in zip(self.index, self.sizes, strict=True)])

    def _tile(self) -> int:
        """The largest power of two in whose aligned runs every group reads."""
        t = 1
        while self.in_features % (2 * t) == 0 and self.index.shape[1] % (2 * t) == 0:
            runs = self.index.view(len(self.index), -1, 2 * t)
            if not bool((runs == runs[..., :1] // (2 * t) * (2 * t) + torch.arange(2 * t, device=runs.device)).all()):
                break
            t *= 2
        return t

    def macs(self, _input_shape: tuple[int, ...]) -> int:
        own = self.out_features * self.in_features if self.layout == "dense" else self.weight.numel()
        return own + self.rescore * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        placed = x if self.reorder is None else _rows(x, self.reorder)
        if self.layout == "dense":
            y = F.linear(x, self.dense_weight(), self.bias if self._back is None else self.bias[self._back])
            if not self.rescore:
                return y
            y = y if self.order is None else _rows(y, self.order)
        else:
            y = self._tiled(placed) if self.layout == "tiled" else self._gather(placed)
        if self.rescore:
            y = rescored(placed, y, self.full_weight, self.full_bias, self.rescore)
        return y if self._back is None else _rows(y, self._back)

    def _gather(self, x: Tensor) -> Tensor:
        index = self.wide()
        gathered = x.index_select(1, index.reshape(-1)).view(-1, *index.shape)
        return (gathered * self.weight).sum(-1) + self.bias

    def _tiled(self, x: Tensor) -> Tensor:
        groups, k = self.index.shape
        copied = x.view(-1, self.in_features // self.tile, self.tile).index_select(1, self._tiles).view(-1, groups * k)
        parts = zip(copied.split(k, 1), self.weight.split(self.sizes), self.bias.split(self.sizes), strict=True)
        return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], 1)

    def dense_weight(self) -> Tensor:
        """[classes, features], both in their own order, zero outside the subspaces."""
        index = self.wide() if self.reorder is None else self.reorder[self.wide()]
        made = self.weight.new_zeros(self.out_features, self.in_features).scatter_add(1, index, self.weight)
        return made if self._back is None else made[self._back]

    def slice_channels(self, keep_in: Tensor, keep_out: Tensor) -> None:
        """Cut features: their weights become zero, their index points at a kept one. Classes are never cut."""
        if not bool(keep_out.all()):
            raise SlimrankError("classes of a specialised classifier cannot be cut")
        if bool(keep_in.all()):
            return
        keep = keep_in.to(self.index.device)
        if self.reorder is not None:
            place = torch.cumsum(keep.long(), 0) - 1
            kept = keep[self.reorder]
            self.reorder, keep = place[self.reorder[kept]], kept
        new = (torch.cumsum(keep.long(), 0) - 1).clamp_min(0)
        alive = keep[self.index]
        of_rows = alive.repeat_interleave(torch.tensor(self.sizes, device=alive.device), 0)
        self.weight = nn.Parameter(self.weight.detach() * of_rows)
        self.index = new[self.index] * alive
        if self.full_weight is not None:
            self.full_weight = self.full_weight[:, keep]
        self.in_features = int(keep.sum())
        self._arrange()

    def extra_repr(self) -> str:
        groups = "" if len(self.index) == self.out_features else f" in {len(self.index)} groups"
        again = f", {self.rescore} rescored" if self.rescore else ""
        return (
            f"{self.in_features} -> {self.index.shape[1]} of them a class -> {self.out_features}{groups}, {self.layout}{again}"
        )


def rescored(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, count: int) -> Tensor:
    """Logits y [images, classes], those of the `count` largest replaced by weight x + bias (weight [classes, features])."""
    assert weight is not None
    assert bias is not None
    best = y.topk(count, 1, sorted=False).indices
    rows = weight.index_select(0, best.flatten()).view(-1, count, weight.shape[1])
    exact = (x.unsqueeze(1) @ rows.transpose(1, 2)).squeeze(1) + bias.index_select(0, best.flatten()).view(-1, count)
    return y.scatter(1, best, exact.to(y.dtype))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[:, index]; ONNX Runtime copies whole rows of the transpose far faster than single numbers of every image."""
    return x.t().index_select(0, index).t()
