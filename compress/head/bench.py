"""`bench-head`: the final layer alone, dense against int8, low rank and subspaces in every layout, in one interleaved run."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import SlimrankError, near
from ...evaluate.latency import Comparison, compare
from ...evaluate.macs import count
from ...export.to_onnx import size
from ...files import Scratch
from ..channels import channels_of
from ..channels.features import classifier
from ..network.checkpoint import Checkpoint
from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear, check_probe
from .best import Best
from .classifier import two_level_groups
from .low_rank import low_rank
from .matrix import Matrix
from .options import FINAL_LAYERS, INT4, FinalLayerOptions, check_tile
from .timing import head_files, random_head

PROBE = 8  # groups of a two-level head that are computed, where nobody says how many


@dataclass(frozen=True)
class FinalLayerLatency:
    """One layout at one setting. `speedup`: over the dense layer; `bytes`: of its ONNX file; `agreement`: share of the judging
    queries on which it decides as the dense layer, None without queries."""

    layout: str
    provider: str
    batch: int
    threads: int
    median_us: float
    speedup: float
    macs: int
    bytes: int
    agreement: float | None = None


@dataclass(frozen=True)
class FinalLayerShape:
    """The size of the layer, and of the heads that are timed against it: `k` features a class, in `groups` of classes;
    `probe` of the `probe_groups` groups of a two-level head are computed, and, of two-level+best, a `shortlist` of classes."""

    features: int
    classes: int
    k: int
    groups: int
    tile: int
    rescore: int
    probe: int
    probe_groups: int
    shortlist: int = 0


@dataclass(frozen=True)
class FinalLayerBench:
    """All layouts at all settings; the layout `linear` is the dense layer."""

    shape: FinalLayerShape
    two_level: bool
    results: list[FinalLayerLatency]
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.results]
        return {**asdict(self.shape), "results": rows, "machine": self.comparison.machine.to_dict()}

    def __str__(self) -> str:
        shape, layouts = self.shape, {row.layout: row for row in self.results}
        sizes = "\n".join(
            f"  {row.layout:28} {row.macs:>12,} MACs {row.bytes:>12,} bytes"
            + ("" if row.agreement is None else f"  decides as the dense layer on {row.agreement:.2%}")
            for row in layouts.values()
        )
        two_level = f"; two-level: {shape.probe} of {shape.probe_groups} groups" if self.two_level else ""
        two_level += f", {shape.shortlist} classes always" if self.two_level and shape.shortlist else ""
        return (
            f"{shape.features} features, {shape.classes} classes, {shape.k} features a class ({shape.groups} groups, tiles of "
            f"{shape.tile}{two_level}); `linear` is the dense layer\n{sizes}\n{self.comparison}"
        )


def bench_final_layer(
    checkpoint: Checkpoint | None, options: FinalLayerOptions, *, seed: int = 0, seconds: float = 0.5
) -> FinalLayerBench:
    """Time the final layer alone: of a checkpoint's size, and its own subspaces if it has some, or as the options say.

    A layer that comes as a matrix has heads fitted to half of its queries, and agreement on the other half.
    """
    for name in options.layout:
        if name not in FINAL_LAYERS:
            raise SlimrankError(f"no layout {name!r}; {near(name, FINAL_LAYERS)}")
    matrix = given_matrix(checkpoint, options, seed)
    layer = matrix.linear if matrix else None if checkpoint is None else final_layer(checkpoint)
    own = layer if isinstance(layer, SubspaceLinear) else None
    shape = shape_of(layer, options)
    two_level = any(name.startswith("two-level") for name in options.layout)
    if two_level:
        rescore = shape.rescore if "two-level+rescore" in options.layout else 0
        check_probe(shape.probe, shape.probe_groups, rescore, shape.classes)
    if options.shortlist is not None:
        if matrix is None or "two-level+best" not in options.layout:
            raise SlimrankError("`shortlist` is drawn from `queries`, for `layout` two-level+best; add both, or leave it out")
        if not 0 <= options.shortlist <= shape.classes:
            raise SlimrankError(f"`shortlist` is {options.shortlist}, must lie in 0..{shape.classes}, the number of classes")
    if not two_level and options.probe is not None and own is None:
        raise SlimrankError("`probe` says how many groups of a two-level head are computed; add `layout` two-level")
    linear = matrix.linear if matrix else nn.Linear(shape.features, shape.classes).eval()
    makers = rivals(linear, shape, seed)
    if matrix:
        makers = matrix.heads(
            shape.k, shape.groups, shape.tile, shape.rescore, shape.probe, shape.probe_groups, shape.shortlist
        )
    names = [n for name in options.layout for n in ((name, f"{name}, adjacent") if name.startswith("tiled") else (name,))]
    heads: dict[str, nn.Module] = {"linear": linear, **{name: makers[name]() for name in names if name in makers}}
    if own is not None:
        heads["as it is"] = own
    clock = options.timing
    with Scratch() as folder:
        paths = head_files(heads, shape.features, Path(folder), options.layout)
        file_bytes = {name: size(path) for name, path in paths.items()}
        comparison = compare(paths, providers=clock.providers, batches=clock.batch, threads=clock.threads, seconds=seconds)
        same = {name: matrix.agreement(path) for name, path in paths.items()} if matrix else {}
    dense_ms = {(r.provider, r.batch, r.threads): r.median_ms for r in comparison.results if r.model == "linear"}
    macs = {name: count(head, (shape.features,)).macs for name, head in heads.items()}
    macs |= dict.fromkeys((INT8, INT4), shape.features * shape.classes)
    rows = [
        FinalLayerLatency(
            r.model, r.provider, r.batch, r.threads, 1e3 * r.median_ms,
            dense_ms[r.provider, r.batch, r.threads] / r.median_ms, macs[r.model], file_bytes[r.model],
            same.get(r.model),
        )
        for r in comparison.results
    ]  # fmt: skip
    return FinalLayerBench(shape, two_level, rows, comparison)


def given_matrix(checkpoint: Checkpoint | None, options: FinalLayerOptions, seed: int) -> Matrix | None:
    """The layer that the options name as a file, if they do; SlimrankError where half of what it takes is missing."""
    if options.weights is None and options.queries is None:
        return None
    if options.weights is None or options.queries is None:
        raise SlimrankError("`weights` and `queries` go together: a layer as a matrix, and what it is asked")
    if checkpoint is not None:
        raise SlimrankError("give a checkpoint or `weights`, not both")
    return Matrix.read(options.weights, options.queries, seed)


def final_layer(checkpoint: Checkpoint) -> SubspaceLinear | nn.Linear:
    """The layer that gives the classes; SlimrankError where it is neither dense nor a class-specific head."""
    channels = channels_of(checkpoint)
    layer = checkpoint.model.get_submodule(channels.classifier)
    return layer if isinstance(layer, SubspaceLinear) else classifier(checkpoint.model, channels, checkpoint.example())[1]


def shape_of(layer: SubspaceLinear | nn.Linear | None, options: FinalLayerOptions) -> FinalLayerShape:
    """What is timed: the layer's own shape where it has one, else what the options say; SlimrankError for what cannot be."""
    features, classes, k, groups, tile = options.features, options.classes, options.k, options.groups, options.tile
    rescore, probe = options.rescore, options.probe
    if layer is not None:
        features, classes = layer.in_features, layer.out_features
    if isinstance(layer, SubspaceLinear):
        k, groups, tile = layer.weight.shape[1], len(layer.index), layer.tile
        rescore, probe = layer.rescore or rescore, (layer.probe or None) if probe is None else probe
    counts = {"features": features, "classes": classes, "rescore": rescore, "probe": 1 if probe is None else probe}
    for name, value in counts.items():
        if value < 1:
            raise SlimrankError(f"`{name}` is {value}, must be at least 1")
    k = max(1, features // 16) if k is None else k
    if not 1 <= k <= features:
        raise SlimrankError(f"`k` is {k}, must lie in 1..{features}, the number of features")
    probe_groups = two_level_groups(classes) if groups is None else groups
    groups = min(classes, 4) if groups is None else groups
    if not 1 <= groups <= classes:
        raise SlimrankError(f"`groups` is {groups}, must lie in 1..{classes}, the number of classes")
    check_tile(tile)
    tile = next(t for t in (16, 8, 4, 2, 1) if features % t == 0 and k % t == 0) if tile is None else tile
    if features % tile or k % tile:
        raise SlimrankError(f"`tile` {tile} does not divide `k` {k} and {features} features; choose another")
    probe = min(PROBE, probe_groups) if probe is None else probe
    shortlist = 0 if options.queries is None else classes // 64 if options.shortlist is None else options.shortlist
    return FinalLayerShape(features, classes, k, groups, tile, min(rescore, classes), probe, probe_groups, shortlist)


def rivals(linear: nn.Linear, shape: FinalLayerShape, seed: int) -> dict[str, Callable[[], nn.Module]]:
    """How each layout is made, by its name. int8 is not among them: it is the dense layer's file, quantised."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    features, classes, k, rescore = shape.features, shape.classes, shape.k, shape.rescore

    head = partial(random_head, features, classes, k, seed=seed)
    tiled = partial(head, "tiled", class_groups=shape.groups, tile=shape.tile)
    two_level = partial(head, "tiled", class_groups=shape.probe_groups, tile=shape.tile, probe=shape.probe)
    return {
        "svd": lambda: low_rank(weight, bias, k * classes),
        "svd+rescore": lambda: low_rank(weight, bias, k * classes, rescore=rescore),
        "dense": partial(head, "dense"),
        "gather": partial(head, "gather"),
        "tiled": tiled,
        "tiled+rescore": partial(tiled, rescore=rescore),
        "tiled, adjacent": partial(tiled, ordered=False),
        "tiled+rescore, adjacent": partial(tiled, rescore=rescore, ordered=False),
        "two-level": two_level,
        "two-level+rescore": partial(two_level, rescore=rescore),
        "two-level+best": lambda: Best(two_level(), rescore),
    }
