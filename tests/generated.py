"""Random architectures: depth, widths, kernels, strides, groups, sums, concats, gates, shuffles, pooling, norms."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    from .toy_models import lively
except ImportError:  # a benchmark runs this file as it lies
    from toy_models import lively

Choose = Callable[[Sequence[Any]], Any]
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.Identity, "prelu")
NORMS = (*["batch"] * 12, *["none"] * 4, "instance", "group", "layer")  # the last three mix channels or are not followed
BLOCKS = (
    "conv",
    "conv",
    "residual",
    "bottleneck",
    "dense",
    "inception",
    "depthwise",
    "gate",
    "glu",
    "shuffle",
    "pool",
    "scale",
)


def generated(choose: Choose) -> nn.Module:
    """A network of 2 to 7 blocks on 3x16x16 images, 5 classes; `choose` picks one of several options."""
    width = choose((4, 8, 12, 17, 24))
    blocks: list[nn.Module] = [Unit(choose, 3, width)]
    for _ in range(choose((1, 2, 3, 4, 5, 6))):
        block = Block(choose, choose(BLOCKS), width)
        blocks.append(block)
        width = block.out
    return nn.Sequential(*blocks, Head(choose, width))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Unit(nn.Sequential):
    """conv, norm, activation."""

    def __init__(self, choose: Choose, a: int, b: int, kernel: int | None = None, stride: int = 1, groups: int = 1):
        kernel = kernel or choose((1, 3, 3, 5))
        parts: list[nn.Module] = [
            nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, groups=groups, bias=choose((True, False)))
        ]
        norm = choose(NORMS)
        if norm == "batch":
            parts.append(nn.BatchNorm2d(b))
        elif norm == "instance":
            parts.append(nn.InstanceNorm2d(b, affine=True))
        elif norm == "group":
            parts.append(nn.GroupNorm(1, b))
        elif norm == "layer":
            parts.append(LayerNorm2d(b))
        act = choose(ACTIVATIONS)
        parts.append(nn.PReLU(b) if act == "prelu" else act())
        super().__init__(*parts)


class Block(nn.Module):
    def __init__(self, choose: Choose, kind: str, n: int):
        super().__init__()
        self.kind, self.out = kind, n
        other = choose((4, 6, 9, 16, 20))
        if kind == "conv":
            groups = choose((1, 1, 2)) if n % 2 == 0 and other % 2 == 0 else 1
            self.a, self.out = Unit(choose, n, other, stride=choose((1, 2)), groups=groups), other
        elif kind == "residual":
            self.a = Unit(choose, n, n)
        elif kind == "bottleneck":
            stride = choose((1, 2))
            self.a = nn.Sequential(Unit(choose, n, other, 1), Unit(choose, other, n, 3, stride))
            self.b = nn.Identity() if stride == 1 else nn.Conv2d(n, n, 1, 2)
        elif kind == "dense":
            self.a, self.out = Unit(choose, n, other), n + other
        elif kind == "inception":
            self.a, self.b, self.out = Unit(choose, n, other, 1), Unit(choose, n, 6, 3), other + 6
        elif kind == "depthwise":
            self.a = nn.Sequential(Unit(choose, n, n, 3, groups=n), Unit(choose, n, other, 1))
            self.out = other
        elif kind == "gate":  # squeeze-excite
            self.a = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(n, 4, 1), nn.ReLU(), nn.Conv2d(4, n, 1), nn.Sigmoid())
        elif kind == "glu":
            self.a, self.out = Unit(choose, n, 2 * other), other
        elif kind == "shuffle":
            even = n + n % 2
            self.a, self.out = Unit(choose, n, even, 1), even
            self.b = Unit(choose, even, even, 3, groups=2)
        elif kind == "pool":
            self.a = choose((nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)))
        elif kind == "scale":
            self.layer_scale = nn.Parameter(torch.full((n, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        kind = self.kind
        if kind == "residual":
            return x + self.a(x)
        if kind == "bottleneck":
            return torch.relu(self.b(x) + self.a(x))
        if kind == "dense":
            return torch.cat([x, self.a(x)], 1)
        if kind == "inception":
            return torch.cat([self.a(x), self.b(x)], 1)
        if kind == "gate":
            return x * self.a(x)
        if kind == "glu":
            left, right = self.a(x).chunk(2, 1)
            return left * torch.sigmoid(right)
        if kind == "shuffle":
            y = self.a(x)
            n, c, h, w = y.shape
            return self.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).flatten(1, 2))
        return x * self.layer_scale if kind == "scale" else self.a(x)


class Head(nn.Module):
    def __init__(self, choose: Choose, n: int):
        super().__init__()
        self.how = choose(("mean", "pool", "flatten", "hidden", "conv"))
        if self.how == "flatten":
            self.pool, n_in = nn.AdaptiveAvgPool2d(2), 4 * n
        else:
            self.pool, n_in = nn.AdaptiveAvgPool2d(1), n
        self.hidden = nn.Linear(n_in, 12) if self.how == "hidden" else nn.Identity()
        self.last = nn.Conv2d(n, 5, 1) if self.how == "conv" else nn.Linear(12 if self.how == "hidden" else n_in, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "conv":
            return self.pool(self.last(x)).flatten(1)
        x = x.mean((2, 3)) if self.how == "mean" else self.pool(x).flatten(1)
        return self.last(torch.relu(self.hidden(x)) if self.how == "hidden" else x)


def chain(model: nn.Module, choose: Choose, folder: Any) -> dict[str, Any]:
    """Prune by a random budget; masked against sliced in float64, sliced against ONNX Runtime. What was seen, as a dict."""
    from slimrank.compress.channels.masking import masked
    from slimrank.compress.channels.tracing import channel_map
    from slimrank.compress.pruning.select import OutOfReach, select
    from slimrank.compress.pruning.surgery import apply_plan
    from slimrank.compress.rankers import RANKERS
    from slimrank.evaluate.latency import Runner
    from slimrank.evaluate.macs import count
    from slimrank.export.to_onnx import export

    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lively(model, x)
    channels = channel_map(model, x[:1])
    budget = {choose(("macs", "params", "ratio")): choose((0.35, 0.5, 0.65, 0.8))}
    rules = {"scope": choose(("layer", "global")), "align": choose((1, 1, 4, 8)), "min_filters": choose((1, 1, 2))}
    try:
        plan = select(model, channels, RANKERS["random"](model, channels, seed=0), **budget, **rules)
    except OutOfReach as error:
        return {"refused": str(error)}
    smaller = apply_plan(model, channels, plan, x[:2])
    assert count(smaller, (3, 16, 16)).macs == plan.macs_after
    gone = channels.removed(plan.keep)
    assert sum(p.numel() for p in smaller.parameters()) == channels.params(model, gone)
    runner = Runner(export(smaller, x[:2], folder / "cut.onnx", {}))
    with torch.inference_mode():
        logits = smaller(x)
        spread = float(logits.std())
        onnx = float((runner(x) - logits).abs().max()) / spread
        with masked(model.double(), channels, gone):
            expected = model(x.double())
        difference = float((smaller.double()(x.double()) - expected).abs().max()) / spread
    assert difference < 1e-9, f"masked and sliced differ by {difference:.1e} of the spread"
    assert onnx < 1e-4, f"ONNX differs by {onnx:.1e} of the spread"
    return {"masked_sliced": difference, "onnx": onnx, "spread": spread, "macs": plan.macs_after / plan.macs_before}
