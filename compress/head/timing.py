"""The final layer's latency on its own: dense, int8, low rank, and subspaces in every layout, in one interleaved run."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankError, near
from ...evaluate.latency import Comparison, compare
from ...evaluate.macs import count
from ...export.quantize import quantized
from ...export.to_onnx import export, size
from ..channels.features import classifier
from ..channels.tracing import channel_map
from ..network.checkpoint import Checkpoint
from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear, check_probe, rescored
from .options import check_tile

GROUPS = (2, 4, 8, 16, 32)  # that `auto` tries, of five classes or more each: every group costs a node
FEW = 20_000  # indices that a gather may copy, at about 9 ns each, to be worth a try
WORST = 0.97  # of the dense layer's speed at any setting: noise, not slower
HEADS = ("int8", "svd", "svd+rescore", "dense", "gather", "tiled", "tiled+rescore", "two-level", "two-level+rescore")
PROBE = 8  # groups of a two-level head that are computed, where nobody says how many


@dataclass(frozen=True)
class Timed:
    """A layout against the dense layer: geometric mean of the speedups over the settings, and the least of them."""

    name: str
    layout: str
    groups: int
    adjacent: bool
    probe: int = 0
    mean: float = 0.0
    worst: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} runs at {self.mean:.2f}x the dense layer's speed, {self.worst:.2f}x at worst"


class LowRank(nn.Module):
    """U (V x) + b, the rival of equal MACs; `rescore` as in SubspaceLinear."""

    full_weight: Tensor | None
    full_bias: Tensor | None

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor, full: tuple[Tensor, Tensor] | None = None, rescore: int = 0):
        super().__init__()
        self.down, self.up = nn.Linear(v.shape[1], v.shape[0], bias=False), nn.Linear(u.shape[1], u.shape[0])
        self.down.weight.data, self.up.weight.data, self.up.bias.data = v.clone(), u.clone(), bias.clone()
        self.in_features, self.out_features, self.rescore = v.shape[1], len(u), rescore
        self.register_buffer("full_weight", full[0].clone() if full and rescore else None)
        self.register_buffer("full_bias", full[1].clone() if full and rescore else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(x))
        return rescored(x, y, self.full_weight, self.full_bias, self.rescore) if self.rescore else y

    def macs(self, _input_shape: tuple[int, ...]) -> int:
        return self.down.weight.numel() + self.up.weight.numel() + self.rescore * self.in_features


def low_rank(
    weight: Tensor, bias: Tensor, macs: int, moments: tuple[Tensor, Tensor] | None = None, rescore: int = 0
) -> LowRank:
    """The best low-rank layer of at most `macs`: SVD of W, or of the logits when the features' (mean, covariance) are given."""
    rank = max(1, macs // sum(weight.shape))
    full = (weight, bias)
    if moments is None:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return LowRank(u[:, :rank] * s[:rank], v[:rank], bias, full, rescore)
    mean, covariance = moments
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    u, _, _ = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    u = u[:, :rank]
    v = u.T @ weight.double()
    return LowRank(u.float(), v.float(), (bias.double() + (weight.double() - u @ v) @ mean).float(), full, rescore)


def shape(
    features: int, classes: int, k: int, layout: str, *, groups: int | None = None, tile: int = 1, ordered: bool = True,
    reorder: bool = False, rescore: int = 0, probe: int = 0, seed: int = 0,
) -> SubspaceLinear:  # fmt: skip
    """A head with random weights and random tiles: its time does not depend on which."""
    generator = torch.Generator().manual_seed(seed)
    rows = lambda *size: torch.randn(*size, generator=generator) / features**0.5  # noqa: E731
    groups = classes if layout not in ("tiled", INT8) or groups is None else groups
    tile = tile if layout == "tiled" else 1
    picks = torch.rand(groups, features // tile, generator=generator).topk(k // tile, 1).indices.sort(1).values
    index = (picks[:, :, None] * tile + torch.arange(tile)).flatten(1)
    return SubspaceLinear(
        rows(classes, k), index, rows(classes), features, layout,
        order=torch.randperm(classes, generator=generator) if layout == "tiled" and ordered else None,
        reorder=torch.randperm(features, generator=generator) if reorder else None,
        full=(rows(classes, features), rows(classes)) if rescore else None, rescore=rescore,
        coarse=(rows(groups, features), rows(groups)) if probe else None, probe=probe,
    ).eval()  # fmt: skip


def time_heads(
    heads: Mapping[str, nn.Module],
    features: int,
    batches: Sequence[int],
    threads: Sequence[int],
    providers: Sequence[str],
    seconds: float = 0.2,
    int8: bool = False,
) -> tuple[Comparison, dict[str, int]]:
    """Latency of final layers on their own, input [batch, features], in one interleaved run; the first is the rival.

    `int8`: also the first one with int8 weights. Returns the comparison and every file's bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: export(head, torch.zeros(1, features), Path(folder) / f"{i}.onnx", {})
            for i, (name, head) in enumerate(heads.items())
        }
        if int8:
            paths["int8"] = quantized(next(iter(paths.values())), Path(folder) / "int8.onnx")
        sized = {name: size(path) for name, path in paths.items()}
        return compare(paths, providers=providers, batches=batches, threads=threads, seconds=seconds), sized


def candidates(
    features: int, classes: int, k: int, tile: int, *, groups: int | None = None, adjacent: bool = False, reorder: bool = False,
    rescore: int = 0, seed: int = 0, probe: int = 0, int8: bool = True,
) -> dict[Timed, nn.Module]:  # fmt: skip
    """The shapes that `auto` tries: tiles in few large groups to many small ones, classes in any order or their own; gather;
    two levels where `probe` says how many groups are computed; the dense layer in int8."""
    made: dict[Timed, nn.Module] = {}
    if int8:
        made[Timed(INT8, INT8, 1, False)] = shape(features, classes, features, INT8, groups=1, seed=seed)
    words: dict[str, Any] = {"rescore": rescore, "seed": seed}
    if classes * k <= FEW:
        made[Timed("gather", "gather", classes, False)] = shape(features, classes, k, "gather", **words)
    for number in [groups] if groups else [g for g in GROUPS if g * 5 <= classes]:
        for ordered in (False,) if adjacent else (False, True):
            name = f"tiled, {number} groups{'' if ordered else ' of adjacent classes'}"
            made[Timed(name, "tiled", number, not ordered)] = shape(
                features, classes, max(tile, k // tile * tile), "tiled", groups=number, tile=tile, ordered=ordered,
                reorder=reorder, **words,
            )  # fmt: skip
    number = groups or two_level_groups(classes)
    if probe:
        words["rescore"] = min(rescore, probe * (classes // number))
        made[Timed(f"two levels, {probe} of {number} groups", "tiled", number, False, probe)] = shape(
            features, classes, max(tile, k // tile * tile), "tiled", groups=number, tile=tile, reorder=reorder, probe=probe,
            **words,
        )  # fmt: skip
    return made


def two_level_groups(classes: int) -> int:
    """As many as a group has classes."""
    return min(classes, max(2, round(classes**0.5)))


def fastest_first(
    shapes: Mapping[Timed, nn.Module], features: int, classes: int, batches: Sequence[int], threads: int, provider: str
) -> tuple[list[Timed], Comparison, str]:
    """Shapes that are faster than the dense layer in the mean and nowhere slower, fastest first; the timings; what to say."""
    heads = {"linear": nn.Linear(features, classes), **{one.name: made for one, made in shapes.items()}}
    timed, _ = time_heads(heads, features, batches, [threads], [provider])
    found = []
    for one in shapes:
        speedups = torch.tensor([s["speedup"] for s in timed.speedups if s["model"] == one.name])
        found.append(replace(one, mean=float(speedups.log().mean().exp()), worst=float(speedups.min())))
    found.sort(key=lambda one: -one.mean)
    if not found:
        return [], timed, "too few classes for groups; the dense layer is as fast as it gets"
    good = [one for one in found if one.mean > 1.05 and one.worst >= WORST]
    told = [] if good else [f"no layout beats the dense layer by the clock: {found[0]}"]
    told += [str(one) for one in found if one.probe and one not in good and (good or one is not found[0])]
    return good, timed, "; ".join(told)


def bench(
    checkpoint: Checkpoint | None, features: int, classes: int, k: int | None, layout: Sequence[str], *,
    groups: int | None = None, tile: int | None = None, rescore: int = 8, probe: int | None = None,
    batches: Sequence[int], threads: Sequence[int], providers: Sequence[str], seed: int = 0, seconds: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    """`bench-head`: the final layer alone, against dense. A checkpoint's size and subspaces, or `features` x `classes`."""
    for name in layout:
        if name not in HEADS:
            raise SlimrankError(f"no layout {name!r}; {near(name, HEADS)}")
    own: SubspaceLinear | None = None
    if checkpoint is not None:
        channels = channel_map(checkpoint.model, checkpoint.example())
        found = checkpoint.model.get_submodule(channels.classifier)
        if isinstance(found, SubspaceLinear):
            own, k, groups, tile = found, found.weight.shape[1], len(found.index), found.tile
            rescore, probe = found.rescore or rescore, (found.probe or None) if probe is None else probe
        else:
            found = classifier(checkpoint.model, channels)[1]
        features, classes = int(found.in_features), int(found.out_features)
    for name, value in (
        ("features", features),
        ("classes", classes),
        ("rescore", rescore),
        ("probe", 1 if probe is None else probe),
    ):
        if value < 1:
            raise SlimrankError(f"`{name}` is {value}, must be at least 1")
    k = max(1, features // 16) if k is None else k
    if not 1 <= k <= features:
        raise SlimrankError(f"`k` is {k}, must lie in 1..{features}, the number of features")
    many = two_level_groups(classes) if groups is None else groups
    groups = min(classes, 4) if groups is None else groups
    if not 1 <= groups <= classes:
        raise SlimrankError(f"`groups` is {groups}, must lie in 1..{classes}, the number of classes")
    check_tile(tile)
    tile = next(t for t in (16, 8, 4, 2, 1) if features % t == 0 and k % t == 0) if tile is None else tile
    if features % tile or k % tile:
        raise SlimrankError(f"`tile` {tile} does not divide `k` {k} and {features} features; choose another")
    linear = nn.Linear(features, classes).eval()
    weight, bias = linear.weight.detach(), linear.bias.detach()
    again = min(rescore, classes)
    few = min(PROBE, many) if probe is None else probe
    two = any(name.startswith("two-level") for name in layout)
    if two:
        check_probe(few, many, again if "two-level+rescore" in layout else 0, classes)
    elif probe is not None and own is None:
        raise SlimrankError("`probe` says how many groups of a two-level head are computed; add `layout` two-level")
    kinds: dict[str, Any] = {
        "svd": lambda: low_rank(weight, bias, k * classes),
        "svd+rescore": lambda: low_rank(weight, bias, k * classes, rescore=again),
        "dense": lambda: shape(features, classes, k, "dense", seed=seed),
        "gather": lambda: shape(features, classes, k, "gather", seed=seed),
        "tiled": lambda: shape(features, classes, k, "tiled", groups=groups, tile=tile, seed=seed),
        "tiled+rescore": lambda: shape(features, classes, k, "tiled", groups=groups, tile=tile, rescore=again, seed=seed),
        "tiled, adjacent": lambda: shape(features, classes, k, "tiled", groups=groups, tile=tile, ordered=False, seed=seed),
        "tiled+rescore, adjacent": lambda: shape(
            features, classes, k, "tiled", groups=groups, tile=tile, ordered=False, rescore=again, seed=seed
        ),
        "two-level": lambda: shape(features, classes, k, "tiled", groups=many, tile=tile, probe=few, seed=seed),
        "two-level+rescore": lambda: shape(
            features, classes, k, "tiled", groups=many, tile=tile, probe=few, rescore=again, seed=seed
        ),
    }  # fmt: skip
    names = [n for name in layout for n in ((name, f"{name}, adjacent") if name.startswith("tiled") else (name,))]
    heads: dict[str, nn.Module] = {"linear": linear, **{name: kinds[name]() for name in names if name in kinds}}
    if own is not None:
        heads["as it is"] = own
    timed, sized = time_heads(heads, features, batches, threads, providers, seconds, int8="int8" in layout)
    base = {(r.provider, r.batch, r.threads): r.median_ms for r in timed.results if r.model == "linear"}
    macs = {name: count(head, (features,)).macs for name, head in heads.items()} | {"int8": features * classes}
    rows = [
        {
            "layout": r.model, "provider": r.provider, "batch": r.batch, "threads": r.threads,
            "median_us": 1e3 * r.median_ms, "speedup": base[r.provider, r.batch, r.threads] / r.median_ms,
            "macs": macs[r.model], "bytes": sized[r.model],
        }
        for r in timed.results
    ]  # fmt: skip
    sizes_ = "\n".join(f"  {name:28} {macs[name]:>12,} MACs {sized[name]:>12,} bytes" for name in sized)
    both = f"; two-level: {few} of {many} groups" if two else ""
    table = (
        f"{features} features, {classes} classes, {k} features a class ({groups} groups, tiles of {tile}{both}); "
        f"`linear` is the dense layer\n{sizes_}\n{timed}"
    )
    shaped = {
        "features": features,
        "classes": classes,
        "k": k,
        "groups": groups,
        "tile": tile,
        "rescore": again,
        "probe": few,
        "probe_groups": many,
    }
    return {**shaped, "results": rows, "machine": timed.machine, "table": table}
