"""A linear layer in which a class reads only some of the features (Badola et al., "Decomposing the Deep").

The classes are divided into groups; the classes of a group read the same k features. The paper's decomposed classifier is
the case of one class a group. What makes a group fast is that its features lie in tiles of adjacent ones: then a copy of a
few tiles and one small dense product serve the whole group (layouts.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError, near
from . import layouts
from .layout_names import INT8, LAYOUTS


def sizes(classes: int, groups: int) -> list[int]:
    """Divide classes into groups as evenly as can be; the larger groups come first."""
    least, more = divmod(classes, groups)
    return [least + 1] * more + [least] * (groups - more)


def check_probe(probe: int, class_groups: int, rescore: int, classes: int) -> None:
    """Raise SlimrankError where there are not as many groups of classes to probe, or classes to rescore in them."""
    if not 0 <= probe <= class_groups:
        raise SlimrankError(f"`probe` is {probe}, there are {class_groups} groups of classes; choose 1 to {class_groups}")
    if probe and rescore > probe * (classes // class_groups):
        raise SlimrankError(
            f"`rescore` {rescore} is more than the {probe * (classes // class_groups)} classes of {probe} probed groups; "
            "rescore fewer or probe more"
        )


class SubspaceLinear(nn.Module):
    """Linear layer of `in_features` features in which the classes of group g read the features `index[g]`.

    weight [classes, k] and bias [classes] lie group after group, group sizes are `sizes(classes, groups)`; index
    [groups, k] rises within a group. `order` [classes]: the class of each row (None: rows are classes in their order).
    `reorder` [in_features]: the input feature that comes to each place before anything is read (None: as they come).

    The layouts `dense`, `gather` and `tiled` are exact rewritings of one another; `int8` rounds, in eval mode only, and keeps
    the float weights (layouts.py). `rescore` N: the N classes with the largest subspace logits are given the logits of
    `full_weight` [classes, in_features] and `full_bias` (rows as in weight) instead: N * in_features MACs more an image.

    `probe` P, layout `tiled` (a two-level head; the paper leaves trees to future work): of each image only
    the P groups with the largest coarse score are computed, `coarse_weight` [groups, in_features] x + `coarse_bias`; every
    other class gets one less than the least logit that was. 0: all groups. In training mode all groups are computed.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    index: Tensor
    order: Tensor | None
    reorder: Tensor | None
    full_weight: nn.Parameter | None
    full_bias: nn.Parameter | None
    coarse_weight: nn.Parameter | None
    coarse_bias: nn.Parameter | None
    tile: int  # how many adjacent features are copied at once
    _tiles: Tensor
    _back: Tensor | None
    _members: Tensor
    _twice: Tensor
    _rounded: Tensor
    _step: Tensor

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
        coarse: tuple[Tensor, Tensor] | None = None,
        probe: int = 0,
    ):
        super().__init__()
        _check(weight, index, in_features, layout, rescore, full is not None, probe, coarse is not None)
        self.in_features, self.layout, self.rescore, self.probe = in_features, layout, rescore, probe
        self.weight, self.bias = _own(weight), _own(bias)
        _keep(self, True, index=index, order=order, reorder=reorder)
        self.full_weight, self.full_bias = (_own(t) for t in full) if full and rescore else (None, None)
        self.coarse_weight, self.coarse_bias = (_own(t) for t in coarse) if coarse and probe else (None, None)
        self._arrange()

    def train(self, mode: bool = True) -> "SubspaceLinear":
        if self.layout == INT8 and not mode:
            rounded, step = layouts.int8_weight(self.dense_weight().detach())
            _keep(self, False, _rounded=rounded, _step=step)
        return super().train(mode)

    def _arrange(self) -> None:
        """Derive what forward() needs from the index: the tiles, the row of each class, the rows of each group."""
        self.tile = layouts.tile_width(self.index, self.in_features)
        tiles = self.index[:, :: self.tile].reshape(-1) // self.tile
        back = None if self.order is None else self.order.argsort()
        members, twice = layouts.members(self.sizes, self.index.device)
        _keep(self, False, _tiles=tiles, _back=back, _members=members, _twice=twice)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def sizes(self) -> list[int]:
        return sizes(len(self.weight), len(self.index))

    def indices(self) -> Tensor:
        """[classes, k]: the input features that each class reads, classes in their own order, rising."""
        wide = self.wide()
        return self._by_class((wide if self.reorder is None else self.reorder[wide]).sort(1).values)

    def wide(self) -> Tensor:
        """[classes, k]: the index of every row of the weight."""
        if len(self.index) == len(self.weight):
            return self.index
        return torch.cat([row.expand(size, -1) for row, size in zip(self.index, self.sizes, strict=True)])

    def macs(self, _input_shape: tuple[int, ...]) -> int:
        """Count the multiply-adds of one image."""
        own = self.out_features * self.in_features if self.layout in ("dense", INT8) else self.weight.numel()
        if self.probe:
            own = len(self.index) * self.in_features + self.probe * self._members.shape[1] * self.index.shape[1]
        return own + self.rescore * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        placed = x if self.reorder is None else layouts.moved(x, self.reorder)
        if self.probe and not self.training:
            return _two_level(self, placed)
        if self.layout == INT8 and not self.training:
            return layouts.int8(x, self._rounded, self._step, self._by_class(self.bias))
        if self.layout in ("dense", INT8):
            y = F.linear(x, self.dense_weight(), self._by_class(self.bias))
            if not self.rescore:
                return y
            y = y if self.order is None else layouts.moved(y, self.order)
        elif self.layout == "tiled":
            y = layouts.tiled(placed, self._tiles, self.tile, self.weight, self.bias, self.sizes)
        else:
            y = layouts.gather(placed, self.wide(), self.weight, self.bias)
        if self.rescore:
            y = layouts.rescored(placed, y, self.full_weight, self.full_bias, self.rescore)
        return y if self._back is None else layouts.moved(y, self._back)

    def probed(self, placed: Tensor) -> Tensor:
        """[images, probe]: the groups of classes that are computed."""
        assert self.coarse_weight is not None
        return F.linear(placed, self.coarse_weight, self.coarse_bias).topk(self.probe, 1).indices

    def _by_class(self, rows: Tensor) -> Tensor:
        """Bring rows, [classes, ...], in the order of the classes."""
        return rows if self._back is None else rows[self._back]

    def dense_weight(self) -> Tensor:
        """[classes, features], both in their own order, zero outside the subspaces."""
        index = self.wide() if self.reorder is None else self.reorder[self.wide()]
        return self._by_class(layouts.dense_matrix(self.weight, index, self.in_features))

    def slice_channels(self, keep_in: Tensor, keep_out: Tensor) -> None:
        """Cut features: their weights become zero, their index points at a kept one. Classes are never cut."""
        if not bool(keep_out.all()):
            raise SlimrankError("classes of a specialised classifier cannot be cut")
        if bool(keep_in.all()):
            return
        _cut_features(self, keep_in.to(self.index.device))
        self._arrange()
        self.train(self.training)

    def extra_repr(self) -> str:
        groups = "" if len(self.index) == self.out_features else f" in {len(self.index)} groups"
        again = f", {self.probe} probed" if self.probe else ""
        again += f", {self.rescore} rescored" if self.rescore else ""
        return (
            f"{self.in_features} -> {self.index.shape[1]} of them a class -> {self.out_features}{groups}, {self.layout}{again}"
        )


def candidates(head: SubspaceLinear, placed: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and rows of the groups that are computed, [images, probe * most classes a group]; what stands twice in them
    has -inf the second time."""
    best = head.probed(placed).flatten()
    own = head._members.index_select(0, best)
    y, rows = layouts.probed(placed, best, own, head._tiles, head.tile, head.weight, head.bias)
    if len(head.weight) % len(head.index):
        y = y + head._twice.index_select(0, best).view(placed.shape[0], -1)
    return y, rows


def _two_level(head: SubspaceLinear, x: Tensor) -> Tensor:
    """Compute the groups with the best coarse scores, rescore among their classes, and put all others below."""
    best = head.probed(x).flatten()
    own = head._members.index_select(0, best)
    y, rows = layouts.probed(x, best, own, head._tiles, head.tile, head.weight, head.bias)
    classes = rows if head.order is None else head.order[rows]
    least = y.amin(1, keepdim=True)
    if not head.rescore:
        return layouts.elsewhere(least, head.out_features).scatter(1, classes, y)
    once = y + head._twice.index_select(0, best).view(x.shape[0], -1)
    chosen = once.topk(head.rescore, 1, sorted=False).indices
    again = layouts.exact(x, rows.gather(1, chosen), head.full_weight, head.full_bias).to(y.dtype)
    least = torch.minimum(least, again.amin(1, keepdim=True))
    logits = layouts.elsewhere(least, head.out_features).scatter(1, classes, y)
    return logits.scatter(1, classes.gather(1, chosen), again)


def _cut_features(head: SubspaceLinear, keep: Tensor) -> None:
    """Cut the features where the boolean mask [in_features] is False from every tensor of the layer."""
    if head.reorder is not None:
        place = torch.cumsum(keep.long(), 0) - 1
        kept = keep[head.reorder]
        head.reorder, keep = place[head.reorder[kept]], kept
    new = (torch.cumsum(keep.long(), 0) - 1).clamp_min(0)
    alive = keep[head.index]
    of_rows = alive.repeat_interleave(torch.tensor(head.sizes, device=alive.device), 0)
    head.weight = nn.Parameter(head.weight.detach() * of_rows)
    head.index = new[head.index] * alive
    if head.full_weight is not None:
        head.full_weight = _own(head.full_weight[:, keep])
    if head.coarse_weight is not None:
        head.coarse_weight = _own(head.coarse_weight[:, keep])
    head.in_features = int(keep.sum())


def _check(
    weight: Tensor, index: Tensor, in_features: int, layout: str, rescore: int, full: bool, probe: int, coarse: bool
) -> None:
    """Raise SlimrankError where the parts of a layer do not fit; `full`, `coarse`: whether those weights are given."""
    if layout not in (*LAYOUTS, INT8):
        raise SlimrankError(f"no layout {layout!r}; {near(layout, (*LAYOUTS, INT8))}")
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < in_features:
        raise SlimrankError(f"subspace indices must lie in 0..{in_features - 1}")
    if not 0 <= rescore <= len(weight):
        raise SlimrankError(f"`rescore` is {rescore}, the classifier has {len(weight)} classes; choose 1 to {len(weight)}")
    if rescore and not full:
        raise SlimrankError("`rescore` needs the dense layer's weights; specialise the dense checkpoint")
    check_probe(probe, len(index), rescore, len(weight))
    if probe and (not coarse or layout != "tiled"):
        raise SlimrankError("`probe` needs groups of classes and their coarse scores; take `layout` tiled")


def _keep(module: nn.Module, persistent: bool, **tensors: Tensor | None) -> None:
    """Set buffers; what is None becomes a plain attribute, for torch.export miscounts the buffers that are None."""
    for name, tensor in tensors.items():
        if hasattr(module, name):
            delattr(module, name)
        if tensor is None:
            setattr(module, name, None)
        else:
            module.register_buffer(name, tensor.detach().clone(), persistent)


def _own(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())
