"""What a cut has lost, put back in closed form: without labels and without training.

Front to back, each conv and linear layer behind the cut takes the weights that give, from what it reads in the network that
is cut and repaired so far, nearest what it wrote in the dense one. Source: He et al. 2017, "Channel Pruning for Accelerating
Very Deep Neural Networks", section 3.2; the error that a residual sum already carries is asked of the last layer in front of it
(section 3.4 there, residual.py), and what a ReLU cuts off is not asked for (rectified.py). We deviate: nothing is asked of the
weights but to lie near the sliced ones, by as much as held-out images say (ridge), and a layer whose error on these does not
fall keeps what it had.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from tqdm import tqdm

from ...clone import clone
from ...errors import SlimrankError
from ...processes import alone, shared
from ..channels.groups import ChannelMap, stays
from ..coalitions import MEMORY
from ..layerwise.equations import Sums, equations, solved
from ..layerwise.few_rows import FewRows
from ..layerwise.moments import Moments
from ..layerwise.prefix import Prefix, Program, Store
from ..layerwise.rows import Layer, Positions, as_matrix, as_weight, choose_positions, inputs, outputs
from .rectified import Rectified, Rows, with_offset
from .residual import Residual

HELD_OUT = 5  # one image in so many chooses the ridge, and whether a layer moves at all
RIDGE = 1e-2  # times the mean variance of the columns: where the search for the best power of ten begins
RIDGES = (1e-8, 1e2)  # where it ends; beside them inf: the means alone
ROWS, ROWS_A_COLUMN = 50_000, 16  # output positions that are drawn, in all and for each column: the larger number of the two
ROWS_A_GROUP = 2_000  # the least of a conv of many groups, which share ROWS: each has few columns
BLOCK = 2**25  # bytes of rows that are multiplied at once
PARTS = 8  # of the images, each summed by itself; as many processes can share the work
COPIES = 6  # of a Gram matrix, at the worst: images that fit, that are held out, their sum, and what solving takes


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """One layer: its squared error on held-out images as a share of its outputs' variance, before and after.

    `ridge`: None where it was left as it was, inf where only its mean moved. `rows`, `columns`: of the least squares.
    """

    layer: str
    before: float
    after: float
    ridge: float | None
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A repaired network. `images`: that were used, a fifth of them held out; `left`: layers that were not fitted, and why."""

    model: nn.Module
    layers: list[LayerFit]
    left: dict[str, str]
    images: int
    seconds: float

    @property
    def note(self) -> str:
        """What did not go as usual, in words; empty where everything did."""
        few = sum(fit.rows < fit.columns for fit in self.layers)
        notes = [f"{few} of {len(self.layers)} layers have more inputs than these images have positions"] if few else []
        return "; ".join(notes + [f"{layer} left as it is: {why}" for layer, why in self.left.items()])


def traceable(model: nn.Module) -> str:
    """Say why a network's layers cannot be stopped at one by one; empty where they can."""
    try:
        Program.of(clone(model), [])
    except Exception as error:  # torch.fx raises whatever forward() raises on a proxy
        return " ".join(str(error).split())[:100] or type(error).__name__
    return ""


def reconstruct(
    dense: nn.Module,
    smaller: nn.Module,
    channels: ChannelMap,
    gone: Tensor,
    batches: Any,
    *,
    memory: int = MEMORY,
    seed: int = 0,
    device: str = "cpu",
) -> Reconstruction:
    """Repair `smaller`, which is `dense` without the units in `gone`, on images [n, channels, height, width]; no label is read.

    `batches`: a sequence of (images, labels), or what gives every n-th batch by a slice; its batches fall into PARTS, whose
    sums are added in their order, so that several processes (processes.py) come to the same sums as one.
    `channels`: of the dense network. `memory`: bytes for what both networks' forward passes hold (beyond it, files) and for
    each layer's Gram matrix. `device`: where the images lie. Raises SlimrankError for fewer than two images, for a
    Gram matrix that does not fit, for activations that are not finite, and for a network that torch.fx cannot follow.
    """
    if reason := traceable(dense):
        raise SlimrankError(f"`reconstruct`: torch.fx cannot follow this network's forward() ({reason}); leave it out")
    start = time.perf_counter()
    walk = _Walk.start(dense, smaller, channels, gone, batches, memory, seed, device)
    with torch.inference_mode():
        fits = [walk.refit(name) for name in tqdm(walk.moved, desc="reconstruct", leave=False, disable=None)]
    repaired = _with_tensors(smaller, walk.cut.program.graph)
    return Reconstruction(
        model=repaired, layers=fits, left=_left(walk.cut.program, channels), images=sum(walk.chunks),
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def _with_tensors(model: nn.Module, graph: nn.Module) -> nn.Module:
    """Copy a network with the tensors that a traced copy of it has by the same names."""
    made = clone(model)
    new = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    with torch.no_grad():
        for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
            if name in new:
                tensor.copy_(new[name])
    return made


def _left(program: Program, channels: ChannelMap) -> dict[str, str]:
    """Layers that nothing stops at, and why."""
    called = {str(node.target) for node in program.nodes if node.op == "call_module"}
    hidden = {name: "its weight is read outside its own forward()" for name in channels.positions if name not in called}
    return {**hidden, **dict.fromkeys(sorted(program.twice), "it is called twice")}


@dataclass
class _Walk:
    """Both networks, layer by layer. `moved`: layers whose inputs are not what they were, in the order of the passes."""

    dense: Prefix
    cut: Prefix
    channels: ChannelMap
    gone: Tensor
    moved: list[str]
    chunks: list[int]  # images of each
    memory: int
    generator: torch.Generator

    @classmethod
    def start(
        cls, dense: nn.Module, smaller: nn.Module, channels: ChannelMap, gone: Tensor,
        batches: Any, memory: int, seed: int, device: str,
    ) -> "_Walk":  # fmt: skip
        store, layers = Store(memory), list(channels.positions)
        copies = [clone(model).eval().requires_grad_(False) for model in (dense, smaller)]
        conv2d = any(isinstance(module, nn.Conv2d) for module in dense.modules())
        layout = torch.channels_last if conv2d else torch.contiguous_format
        full, cut = (
            Prefix(Program.of(model.to(device).to(memory_format=layout), layers), store, name)
            for model, name in zip(copies, ("dense", "cut"), strict=True)
        )

        def begin(part: int) -> list[int]:
            """Take in the chunks of a part; the images of each."""
            sizes: list[int] = []
            for images, _ in batches[part::PARTS]:
                for prefix in (full, cut):
                    prefix.begin(part + PARTS * len(sizes), images.contiguous(memory_format=layout))
                sizes.append(len(images))
            return sizes

        sizes = list(shared(begin, range(PARTS)))
        chunks = [size for turn in zip_longest(*sizes) for size in turn if size is not None]
        if sum(chunks) < 2:
            raise SlimrankError(
                "reconstruction needs 2 images at least, one to fit and one to judge; give more `data`, or leave it out"
            )
        moved = _moved(cut.program, channels, gone)
        return cls(full, cut, channels, gone, moved, chunks, memory, torch.Generator().manual_seed(seed))

    def refit(self, name: str) -> LayerFit:
        """Fit one layer of the cut network; it and all before it are then as they stay."""
        program = self.cut.program
        node = program.nodes[program.layers[name]]
        layer = program.graph.get_submodule(name)
        assert isinstance(layer, Layer), f"{name} is neither a conv nor a linear layer"
        norm = following_norm(program, node)
        mean = layer.bias is not None or norm is not None  # whether the layer has a place for one
        residual = Residual.at(program, self.dense.program, node, norm)
        rectified = Rectified.behind(program, node, norm, residual, getattr(layer, "groups", 1)) if mean else None
        fit, held, rows = self._sums(name, layer, node, residual, keep=rectified is not None)
        found = alone(lambda: _fitted(name, layer, fit, held, mean))
        ridge = found.ridge
        if ridge is None:
            return found
        sliced = as_matrix(layer, layer.weight).double()
        if rectified is not None and rows and ridge != inf:
            matrix, offset = rectified.refit(rows, fit, held, sliced, ridge)
        else:
            matrix, offset = alone(lambda: with_offset(*solved(fit, held, mean, sliced, ridge)))
        _write(layer, norm, matrix, offset.flatten() if mean else None)
        return found

    def _sums(
        self, name: str, layer: Layer, node: fx.Node, residual: Residual | None, keep: bool
    ) -> tuple[Sums, Sums, list[list[Rows]]]:
        """What the layer reads in the cut network and should write, of the images that fit and of those held out; and, to
        `keep` where they fit half of the memory, the rows of each part themselves, where it is this process's."""
        stay, images = stays(self.channels.writes[name], self.gone), sum(self.chunks)
        kept = None if bool(stay.all()) else stay.nonzero().flatten()
        rows: list[list[Rows]] = [[] for _ in range(PARTS)]
        drawn: list[Positions] = []
        columns, groups = as_matrix(layer, layer.weight).shape[1], getattr(layer, "groups", 1)

        def of_part(part: int) -> tuple[Sums, Sums, bool] | None:
            """Sums of a part's images, and whether their rows are kept; None where it has no images."""
            sums: tuple[Sums, Sums] | None = None
            keeps = keep
            for number, x, y, summands in self._pairs(name, node, residual, part):
                grid = torch.Size() if isinstance(layer, nn.Linear) else y.shape[2:]
                spots = max(1, max(ROWS // groups, ROWS_A_GROUP, ROWS_A_COLUMN * columns) // images)
                if not drawn:  # for all chunks at once, whoever has them
                    drawn.extend(choose_positions(grid, spots, self.generator) if grid else None for _ in self.chunks)
                positions, first = drawn[number], sum(self.chunks[:number])
                rows_an_image = x.shape[1:-1].numel() if isinstance(layer, nn.Linear) else min(spots, grid.numel())
                bytes_an_image = x.element_size() * columns * groups * rows_an_image
                keeps = keeps and bytes_an_image * images <= self.memory // 2 and (residual is None or summands is not None)
                if sums is None:
                    few = self._choose(name, groups, columns, rows_an_image * images)
                step = max(1, BLOCK // bytes_an_image)
                for start in range(0, len(x), step):
                    some = slice(start, start + step)
                    read, wanted = inputs(layer, x[some], grid, positions), outputs(layer, y[some], positions, kept)
                    other = None
                    if summands is not None and residual is not None:
                        other = outputs(layer, summands[1][some], positions)
                        wanted = wanted + residual.asked_back(outputs(layer, summands[0][some], positions, kept) - other)
                    if sums is None:
                        empty = FewRows() if few else Moments.around(read, wanted)
                        sums = empty, empty.empty()
                    for held, its in _parted(first + start, rows_an_image, read, wanted, other):
                        sums[held].add(its.x, its.y)
                        rows[part] += [its] if keeps else []
            return None if sums is None else (*sums, keeps)

        fit, held, keeps = _added(found for found in shared(of_part, range(PARTS), at_once=1) if found is not None)
        self.dense.place, self.cut.place = self.dense.program.layers[name] + 1, self.cut.program.layers[name]
        return fit, held, rows if keeps else []

    def _pairs(
        self, name: str, node: fx.Node, residual: Residual | None, part: int
    ) -> Iterator[tuple[int, Tensor, Tensor, tuple[Tensor, Tensor] | None]]:
        """Chunk by chunk of a part: its number; what the layer reads in the cut network, what it writes in the dense one, and
        what a residual sum adds there, in the dense and in the cut network."""
        after, place = self.dense.program.layers[name] + 1, self.cut.program.layers[name]
        dense_node = self.dense.program.nodes[after - 1]
        for number in range(part, len(self.chunks), PARTS):
            full, cut = self.dense.advance(number, after), self.cut.advance(number, place)
            y, summands = full[dense_node], None
            if residual is not None and full[residual.dense].shape == y.shape:
                summands = full[residual.dense], cut[residual.cut]
            yield number, cut[node.all_input_nodes[0]], y, summands
            self.dense.keep(number, full)
            self.cut.keep(number, cut)

    def _choose(self, name: str, groups: int, columns: int, rows: int) -> bool:
        """Whether rows are kept instead of moments. Raises SlimrankError where neither fits the memory."""
        by_moments, by_rows = 8 * COPIES * groups * columns**2, 8 * COPIES * groups * rows * max(rows, columns)
        if min(by_moments, by_rows) > self.memory:
            raise SlimrankError(
                f"`memory` {self.memory:,} bytes cannot hold the Gram matrix of {name}, {columns:,} inputs; it alone takes "
                f"{min(by_moments, by_rows):,} bytes, so give at least that"
            )
        return rows < columns or by_moments > self.memory


def _added(parts: Iterable[tuple[Any, Any, bool]]) -> tuple[Any, Any, bool]:
    """Sums of all parts, one kind of `Sums`, added in their order; whether the rows of every part are kept."""
    return reduce(lambda one, other: (one[0] + other[0], one[1] + other[1], one[2] and other[2]), parts)


def _parted(first: int, rows_an_image: int, x: Tensor, y: Tensor, other: Tensor | None) -> Iterator[tuple[bool, Rows]]:
    """Split the rows of some images, from number `first` on, by whether they are held out."""
    n = x.shape[1] // rows_an_image
    held = (torch.arange(first, first + n) % HELD_OUT == 0).repeat_interleave(rows_an_image).to(x.device)
    for out in (True, False):
        chosen = (held == out).nonzero().flatten()
        if len(chosen):
            yield out, Rows(out, x[:, chosen], y[:, chosen], None if other is None else other[:, chosen])


def _moved(program: Program, channels: ChannelMap, gone: Tensor) -> list[str]:
    """Layers behind the first cut: those that read cut channels, and whatever comes after."""
    changed: set[fx.Node] = set()
    found = []
    for node in program.nodes:
        behind = any(source in changed for source in node.all_input_nodes)
        name = str(node.target) if node.op == "call_module" else ""
        if behind and name in program.layers:
            found.append(name)
        if behind or (name in channels.writes and not bool(stays(channels.writes[name], gone).all())):
            changed.add(node)
    return found


def following_norm(program: Program, node: fx.Node) -> BatchNorm | None:
    """The BatchNorm with running statistics that alone reads a layer's output; None where there is none."""
    users = list(node.users)
    norm = program.module(users[0]) if len(users) == 1 else None
    return norm if isinstance(norm, BatchNorm) and norm.running_mean is not None else None


def _fitted(name: str, layer: Layer, fit: Sums, held: Sums, mean: bool) -> LayerFit:
    """Choose the ridge by the error on held-out images; the layer as it is, and its mean alone, among the choices."""
    normal, judge = equations(fit, mean), equations(held, mean)
    power = float(judge.power().sum())
    sliced = as_matrix(layer, layer.weight).double()
    columns = sliced.shape[1]
    if not all(map(isfinite, (power, float(normal.power().sum()), float(normal.x_mean.sum())))):
        raise SlimrankError(
            f"`reconstruct`: {name} meets NaN or infinite activations on these images; check the checkpoint with `evaluate`"
        )
    rows = sum(x.shape[1] for x in fit.x) if isinstance(fit, FewRows) else fit.n
    bias = torch.zeros_like(normal.y_mean) if layer.bias is None else layer.bias.double().view_as(normal.y_mean)
    before = float(judge.errors(sliced, bias).sum()) / max(power, 1e-300)
    if power <= 1e-12 * len(bias):
        return LayerFit(layer=name, before=before, after=before, ridge=None, rows=rows, columns=columns)

    def tried(ridge: float) -> float:
        """Error on held-out images, inf where the system is singular."""
        matrix = sliced if ridge == inf else normal.solve(sliced, ridge)
        return inf if matrix is None else float(judge.errors(matrix, normal.offset(matrix)).sum()) / power

    trials = [(before, None), *([(tried(inf), inf)] if mean else []), _best_ridge(tried)]
    after, chosen = min(trials, key=lambda trial: trial[0])
    return LayerFit(layer=name, before=before, after=after, ridge=chosen, rows=rows, columns=columns)


def _best_ridge(tried: Callable[[float], float]) -> tuple[float, float]:
    """The least error among powers of ten, and its ridge: from RIDGE on as long as the error falls, up or else down."""
    best = tried(RIDGE), RIDGE
    for step in (10.0, 0.1):
        ridge = RIDGE * step
        while RIDGES[0] <= ridge <= RIDGES[1] and (trial := (tried(ridge), ridge))[0] < best[0]:
            best, ridge = trial, ridge * step
        if best[1] != RIDGE:
            break
    return best


def _write(layer: Layer, norm: BatchNorm | None, matrix: Tensor, offset: Tensor | None) -> None:
    """Put new weights into a layer, and the offset of its mean into its bias or the running mean behind it."""
    layer.weight.copy_(as_weight(layer, matrix.to(layer.weight)))
    if offset is None:
        return
    if layer.bias is not None:
        layer.bias.copy_(offset)
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean -= offset.to(norm.running_mean)
