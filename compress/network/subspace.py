"""A linear layer in which a class reads only some of the features (Badola et al., "Decomposing the Deep"), and its layouts.

The classes are divided into groups; the classes of a group read the same k features. The paper's decomposed classifier is
the case of one class a group. What makes a group fast is that its features lie in tiles of adjacent ones: then a copy of a
few tiles and one small dense product serve the whole group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError, near
from .layout_names import INT8, LAYOUTS


def sizes(classes: int, groups: int) -> list[int]:
    """Classes divided into groups as evenly as can be; the larger groups come first."""
    least, more = divmod(classes, groups)
    return [least + 1] * more + [least] * (groups - more)


class SubspaceLinear(nn.Module):
    """Linear layer of `in_features` features, the classes of group g reading the features `index[g]`.

    weight [classes, k] and bias [classes] lie group after group, group sizes are `sizes(classes, groups)`; index
    [groups, k] rises within a group. `order` [classes]: the class of each row (None: rows are classes in their order).
    `reorder` [in_features]: the input feature that comes to each place before anything is read (None: as they come).

    Layouts are exact rewritings of one another: `dense` writes the weights back into a [classes, features] matrix with
    zeros (no fewer MACs), `gather` reads k features for each class and multiplies them alone, `tiled` copies each group's
    tiles and multiplies them densely, a group at a time.

    `int8` is `dense` but for rounding: ONNX Runtime's dynamic quantisation, weights with one scale a class, features with
    one for the batch (so that a logit depends, by a rounding, on the images beside it). The float weights stay in the
    layer; training and slicing work on them.

    `rescore` N: the N classes with the largest subspace logits are given the logits of `full_weight` [classes, in_features]
    and `full_bias` (rows as in weight) instead: N * in_features MACs more an image.

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
        if layout not in (*LAYOUTS, INT8):
            raise SlimrankError(f"no layout {layout!r}; {near(layout, (*LAYOUTS, INT8))}")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < in_features:
            raise SlimrankError(f"subspace indices must lie in 0..{in_features - 1}")
        if not 0 <= rescore <= len(weight):
            raise SlimrankError(f"--rescore is {rescore}, the classifier has {len(weight)} classes; choose 1 to {len(weight)}")
        if rescore and full is None:
            raise SlimrankError("--rescore needs the dense layer's weights; specialise the dense checkpoint")
        check_probe(probe, len(index), rescore, len(weight))
        if probe and (coarse is None or layout != "tiled"):
            raise SlimrankError("--probe needs groups of classes and their coarse scores; take --layout tiled")
        self.in_features, self.layout, self.rescore, self.probe = in_features, layout, rescore, probe
        self.weight, self.bias = _own(weight), _own(bias)
        self._keep(index=index, order=order, reorder=reorder)
        self.full_weight, self.full_bias = (_own(t) for t in full) if full and rescore else (None, None)
        self.coarse_weight, self.coarse_bias = (_own(t) for t in coarse) if coarse and probe else (None, None)
        self._arrange()

    def _keep(self, persistent: bool = True, **tensors: Tensor | None) -> None:
        """Buffers; what is None becomes a plain attribute, for torch.export miscounts the buffers that are None."""
        for name, tensor in tensors.items():
            if hasattr(self, name):
                delattr(self, name)
            if tensor is None:
                setattr(self, name, None)
            else:
                self.register_buffer(name, tensor.detach().clone(), persistent)

    def train(self, mode: bool = True) -> "SubspaceLinear":
        if self.layout == INT8 and not mode:
            self._round()
        return super().train(mode)

    def _round(self) -> None:
        """The weights in int8 [features, classes], and what one step of each class is worth."""
        weight = self.dense_weight().detach()
        step = weight.abs().amax(1).clamp_min(1e-30) / 127
        self._keep(False, _step=step, _rounded=(weight / step[:, None]).round().to(torch.int8).T.contiguous())

    def _arrange(self) -> None:
        """What forward() needs and the index tells: the tiles' width and numbers, each class's row, each group's rows."""
        self.tile = self._tile()
        sized = torch.tensor(self.sizes, device=self.index.device)
        every = torch.arange(int(sized[0]), device=sized.device)
        self._keep(
            False,
            _tiles=self.index[:, :: self.tile].reshape(-1) // self.tile,
            _back=None if self.order is None else self.order.argsort(),
            # a smaller group's last row stands twice
            _members=(sized.cumsum(0) - sized)[:, None] + torch.minimum(every, sized[:, None] - 1),
            _twice=torch.where(every < sized[:, None], 0.0, -torch.inf),
        )

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
        own = self.out_features * self.in_features if self.layout in ("dense", INT8) else self.weight.numel()
        if self.probe:
            own = len(self.index) * self.in_features + self.probe * self._members.shape[1] * self.index.shape[1]
        return own + self.rescore * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        placed = x if self.reorder is None else _moved(x, self.reorder)
        if self.probe and not self.training:
            return self._probed(placed)
        if self.layout == INT8 and not self.training:
            return int8_linear(x, self._rounded, self._step, self.bias if self._back is None else self.bias[self._back])
        if self.layout in ("dense", INT8):
            y = F.linear(x, self.dense_weight(), self.bias if self._back is None else self.bias[self._back])
            if not self.rescore:
                return y
            y = y if self.order is None else _moved(y, self.order)
        else:
            y = self._tiled(placed) if self.layout == "tiled" else self._gather(placed)
        if self.rescore:
            y = rescored(placed, y, self.full_weight, self.full_bias, self.rescore)
        return y if self._back is None else _moved(y, self._back)

    def _gather(self, x: Tensor) -> Tensor:
        index = self.wide()
        gathered = x.index_select(1, index.reshape(-1)).view(-1, *index.shape)
        return (gathered * self.weight).sum(-1) + self.bias

    def _tiled(self, x: Tensor) -> Tensor:
        groups, k = self.index.shape
        copied = x.view(-1, self.in_features // self.tile, self.tile).index_select(1, self._tiles).view(-1, groups * k)
        parts = zip(copied.split(k, 1), self.weight.split(self.sizes), self.bias.split(self.sizes), strict=True)
        return torch.cat([F.linear(part, weight, bias) for part, weight, bias in parts], 1)

    def probed(self, placed: Tensor) -> Tensor:
        """[images, probe]: the groups that are computed."""
        assert self.coarse_weight is not None
        return F.linear(placed, self.coarse_weight, self.coarse_bias).topk(self.probe, 1).indices

    def _probed(self, x: Tensor) -> Tensor:
        images, k, per_image = x.shape[0], self.index.shape[1], self.in_features // self.tile
        best = self.probed(x).flatten()
        rows = self._members.index_select(0, best)
        tiles = self._tiles.view(len(self.index), -1).index_select(0, best).view(images, -1)
        tiles = tiles + per_image * torch.arange(images, device=x.device).unsqueeze(1)
        copied = x.reshape(-1, self.tile).index_select(0, tiles.flatten()).view(-1, 1, k)
        weight = self.weight.index_select(0, rows.flatten()).view(-1, rows.shape[1], k)
        rows = rows.view(images, -1)
        y = (copied @ weight.transpose(1, 2)).view(images, -1) + self.bias[rows]
        classes = rows if self.order is None else self.order[rows]
        least = y.amin(1, keepdim=True)
        if not self.rescore:
            return (least - 1).expand(-1, self.out_features).scatter(1, classes, y)
        once = y + self._twice.index_select(0, best).view(images, -1)
        chosen = once.topk(self.rescore, 1, sorted=False).indices
        again = exact(x, rows.gather(1, chosen), self.full_weight, self.full_bias).to(y.dtype)
        least = torch.minimum(least, again.amin(1, keepdim=True))
        made = (least - 1).expand(-1, self.out_features).scatter(1, classes, y)
        return made.scatter(1, classes.gather(1, chosen), again)

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
            self.full_weight = _own(self.full_weight[:, keep])
        if self.coarse_weight is not None:
            self.coarse_weight = _own(self.coarse_weight[:, keep])
        self.in_features = int(keep.sum())
        self._arrange()
        self.train(self.training)

    def extra_repr(self) -> str:
        groups = "" if len(self.index) == self.out_features else f" in {len(self.index)} groups"
        again = f", {self.probe} probed" if self.probe else ""
        again += f", {self.rescore} rescored" if self.rescore else ""
        return (
            f"{self.in_features} -> {self.index.shape[1]} of them a class -> {self.out_features}{groups}, {self.layout}{again}"
        )


def check_probe(probe: int, groups: int, rescore: int, classes: int) -> None:
    if not 0 <= probe <= groups:
        raise SlimrankError(f"--probe is {probe}, there are {groups} groups of classes; choose 1 to {groups}")
    if probe and rescore > probe * (classes // groups):
        raise SlimrankError(
            f"--rescore {rescore} is more than the {probe * (classes // groups)} classes of {probe} probed groups; "
            "rescore fewer or probe more"
        )


def rescored(x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, count: int) -> Tensor:
    """Logits y [images, classes], those of the `count` largest replaced by weight x + bias (weight [classes, features])."""
    best = y.topk(count, 1, sorted=False).indices
    return y.scatter(1, best, exact(x, best, weight, bias).to(y.dtype))


def exact(x: Tensor, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """[images, count]: for each image its own rows [images, count] of weight x + bias."""
    assert weight is not None
    assert bias is not None
    chosen = rows.flatten()
    own = weight.index_select(0, chosen).view(-1, rows.shape[1], weight.shape[1])
    return (x.unsqueeze(1) @ own.transpose(1, 2)).squeeze(1) + bias.index_select(0, chosen).view(-1, rows.shape[1])


def int8_linear(x: Tensor, weight: Tensor, step: Tensor, bias: Tensor) -> Tensor:
    """x [images, m] rounded to 256 levels, times int8 weight [m, classes] of steps [classes], as ONNX Runtime does it."""
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


def _own(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _moved(x: Tensor, index: Tensor) -> Tensor:
    """x[:, index]; as GatherElements, which ONNX Runtime does several times as fast as a Gather of columns."""
    return x.gather(1, index.expand(x.shape[0], -1))
