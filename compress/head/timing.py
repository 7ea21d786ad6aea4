"""Latency of the final layer on its own: which shapes of head beat the dense layer in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...evaluate.latency import Comparison, compare
from ...export.quantize import quantized, quantized_int4
from ...export.to_onnx import export
from ...files import Scratch
from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear
from .classifier import two_level_groups
from .options import INT4

CLASS_GROUPS = (2, 4, 8, 16, 32)  # that `auto` tries, of five classes or more each: every group costs a node
GATHER_LIMIT = 20_000  # indices that a gather may copy, at about 9 ns each, to be worth a try
WORST = 0.97  # of the dense layer's speed at any setting: noise, not slower


@dataclass(frozen=True)
class Timed:
    """A layout against the dense layer: geometric mean of the speedups over the settings, and the least of them."""

    name: str
    layout: str
    class_groups: int
    adjacent: bool
    probe: int = 0
    mean: float = 0.0
    worst: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} runs at {self.mean:.2f}x the dense layer's speed, {self.worst:.2f}x at worst"


@dataclass(frozen=True)
class Race:
    """The shapes that beat the dense layer, fastest first, the timings of all of them, and what to say of it."""

    faster: list[Timed]
    comparison: Comparison
    note: str


def random_head(
    features: int, classes: int, k: int, layout: str, *, class_groups: int | None = None, tile: int = 1, ordered: bool = True,
    reorder: bool = False, rescore: int = 0, probe: int = 0, seed: int = 0,
) -> SubspaceLinear:  # fmt: skip
    """A head with random weights and random tiles: its time does not depend on which."""
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        weights: Tensor = torch.randn(*shape, generator=generator) / features**0.5
        return weights

    groups = classes if layout not in ("tiled", INT8) or class_groups is None else class_groups
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
) -> Comparison:
    """Latency of final layers on their own, input [batch, features], in one interleaved run; the first is the rival."""
    with Scratch() as folder:
        paths = head_files(heads, features, Path(folder))
        return compare(paths, providers=providers, batches=batches, threads=threads, seconds=seconds)


def head_files(heads: Mapping[str, nn.Module], features: int, folder: Path, layouts: Sequence[str] = ()) -> dict[str, Path]:
    """Export final layers on their own, input [batch, features]; with int8 or int4 among `layouts` also the first one so."""
    paths = {
        name: export(head, torch.zeros(1, features), folder / f"{i}.onnx", {}, outputs=getattr(head, "outputs", ("logits",)))
        for i, (name, head) in enumerate(heads.items())
    }
    first = next(iter(paths.values()))
    for kind, quantise in ((INT8, quantized), (INT4, quantized_int4)):
        if kind in layouts:
            paths[kind] = quantise(first, folder / f"{kind}.onnx")
    return paths


def candidates(
    features: int, classes: int, k: int, tile: int, *, class_groups: int | None = None, adjacent: bool = False,
    reorder: bool = False, rescore: int = 0, seed: int = 0, probe: int = 0, int8: bool = True,
) -> dict[Timed, nn.Module]:  # fmt: skip
    """The shapes that `auto` tries: tiles in few large groups to many small ones, classes in any order or their own; gather;
    two levels where `probe` says how many groups are computed; the dense layer in int8."""
    shapes: dict[Timed, nn.Module] = {}
    if int8:
        shapes[Timed(INT8, INT8, 1, False)] = random_head(features, classes, features, INT8, class_groups=1, seed=seed)
    if classes * k <= GATHER_LIMIT:
        gather = random_head(features, classes, k, "gather", rescore=rescore, seed=seed)
        shapes[Timed("gather", "gather", classes, False)] = gather
    k_tiled = max(tile, k // tile * tile)
    for number in [class_groups] if class_groups else [g for g in CLASS_GROUPS if g * 5 <= classes]:
        for ordered in (False,) if adjacent else (False, True):
            name = f"tiled, {number} groups{'' if ordered else ' of adjacent classes'}"
            shapes[Timed(name, "tiled", number, not ordered)] = random_head(
                features, classes, k_tiled, "tiled", class_groups=number, tile=tile, ordered=ordered,
                reorder=reorder, rescore=rescore, seed=seed,
            )  # fmt: skip
    if probe:
        number = class_groups or two_level_groups(classes)
        shapes[Timed(f"two levels, {probe} of {number} groups", "tiled", number, False, probe)] = random_head(
            features, classes, k_tiled, "tiled", class_groups=number, tile=tile, reorder=reorder, probe=probe,
            rescore=min(rescore, probe * (classes // number)), seed=seed,
        )  # fmt: skip
    return shapes


def fastest_first(
    shapes: Mapping[Timed, nn.Module], features: int, classes: int, batches: Sequence[int], threads: int, provider: str
) -> Race:
    """Time the shapes against the dense layer; only those are faster that are so in the mean and nowhere slower."""
    heads = {"linear": nn.Linear(features, classes), **{shape.name: head for shape, head in shapes.items()}}
    comparison = time_heads(heads, features, batches, [threads], [provider])
    timed = []
    for shape in shapes:
        speedups = torch.tensor([s.speedup for s in comparison.speedups if s.model == shape.name])
        timed.append(replace(shape, mean=float(speedups.log().mean().exp()), worst=float(speedups.min())))
    timed.sort(key=lambda shape: -shape.mean)
    if not timed:
        return Race([], comparison, "too few classes for groups; the dense layer is as fast as it gets")
    faster = [shape for shape in timed if shape.mean > 1.05 and shape.worst >= WORST]
    notes = [] if faster else [f"no layout beats the dense layer by the clock: {timed[0]}"]
    notes += [str(shape) for shape in timed if shape.probe and shape not in faster and (faster or shape is not timed[0])]
    return Race(faster, comparison, "; ".join(notes))
