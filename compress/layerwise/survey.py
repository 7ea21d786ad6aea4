"""Second moments of what layers read in one network, by hooks: nothing is traced, a layer called twice counts both calls."""

from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..network.resize import CONVS
from .moments import Moments
from .rows import as_matrix, choose_positions, has_rows, inputs

CHUNK = 64  # images that run together
ROWS, ROWS_PER_COLUMN = 20_000, 4  # rows that are sampled of a layer's inputs, the larger of the two
BLOCK_BYTES = 2**25
COPIES = 4  # of the largest layer's moments, while they are inverted
BATCHNORM = nn.modules.batchnorm._BatchNorm


@dataclass
class Read:
    """What a layer reads. `columns` [parts, columns of a part], `moments` of each part.

    Of a conv or linear layer there is one part, unless the moments of all columns together are too large: then each kernel
    offset, or each place of a flattened map, is a part of its own and held to be uncorrelated with the others. Of any other
    module each channel is one.

    `mean`: whether the layer can take up a mean, in its bias or in a BatchNorm right behind it; `scale` [filters]: of that
    BatchNorm. `wanted`: else its positions are drawn, so that those of others are the same, and nothing is counted.
    """

    layer: nn.Module
    columns: Tensor
    mean: bool
    scale: Tensor | None = None
    moments: Moments | None = None
    wanted: bool = True

    def add(self, x: Tensor, shape: torch.Size, rows: float, generator: torch.Generator) -> None:
        """Count one call. `shape`: of the output map; `rows`: to sample, an image."""
        conv = isinstance(self.layer, CONVS)
        positions = choose_positions(shape, max(1, round(rows)), generator) if conv else None
        if not self.wanted:
            return
        row_bytes = 4 * self.columns.numel() * (len(positions[0]) if positions else prod(shape))
        for part in x.split(max(1, BLOCK_BYTES // max(1, row_bytes))):
            if has_rows(self.layer):
                every = inputs(self.layer, part, shape, positions)[0]
            else:
                every = part.movedim(1, -1).flatten(0, -2)
            read = every[:, self.columns.to(x.device)].movedim(1, 0)
            if self.moments is None:
                self.moments = Moments.around(read, read[..., :0])
            self.moments.add(read, read[..., :0])

    def second_moments(self) -> Tensor:
        """[parts, columns, columns]: around the mean where the layer can take it up, else around zero."""
        assert self.moments is not None
        return self.moments.centred().xx.cpu() if self.mean else self.moments.raw().xx.cpu()

    def covariance(self) -> Tensor:
        """[parts, columns, columns]."""
        assert self.moments is not None
        return self.moments.centred().xx.cpu()

    @property
    def channels(self) -> Tensor:
        """The input channel of each column, [parts, columns of a part]."""
        return self.columns % self.layer.in_channels if isinstance(self.layer, CONVS) else self.columns

    def matrix(self) -> Tensor:
        """The weight, scaled as by the BatchNorm behind it, float64 [parts, columns of a part, filters]."""
        assert has_rows(self.layer)
        matrix = as_matrix(self.layer, self.layer.get_parameter("weight").detach())[0].cpu().double()
        return (matrix if self.scale is None else matrix * self.scale)[self.columns]


def survey(
    model: nn.Module, names: dict[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]], images: int, memory: int, seed: int,
    wanted: Container[str] | None = None,
) -> Iterator[tuple[str, Read]]:  # fmt: skip
    """Yield what each layer in `names` reads; `names[layer]`: the unit of each input channel. Convs must have one group.
    `wanted`: only these (None: all), as they would be among all.

    `batches`: of `images` images in all. They run once, or more often where the moments of all layers are more than `memory`
    bytes. Raises SlimrankError for a layer whose moments alone are more, for activations that are not finite and for layers
    that are never called.
    """
    reads = {}
    for name, units in names.items():
        layer = model.get_submodule(name)
        if has_rows(layer):
            reads[name] = Read(layer, _parts(name, layer, units, memory), layer.bias is not None)
        else:
            reads[name] = Read(layer, torch.arange(len(units))[:, None], True)
        reads[name].wanted = wanted is None or name in wanted
    generator = torch.Generator().manual_seed(seed)
    for share in _shares(reads, memory):
        training = model.training
        model.eval()
        try:
            with torch.inference_mode(), _watched(model, share, images, generator):
                for x, _ in batches:
                    for chunk in x.split(CHUNK):
                        model(chunk.contiguous(memory_format=torch.channels_last) if chunk.dim() == 4 else chunk)
        finally:
            model.train(training)
        for name, read in share.items():
            if not read.wanted:
                continue
            if read.moments is None:
                raise SlimrankError(f"layer {name} is not called as a module in the forward pass; rank by another ranker")
            if not bool(torch.isfinite(read.moments.xx).all()):
                raise SlimrankError(f"layer {name} reads NaN or infinite activations; check the checkpoint with `evaluate`")
            yield name, read
            read.moments = None


def _parts(name: str, layer: nn.Module, units: Tensor, memory: int) -> Tensor:
    """The layer's columns, [parts, columns of a part], in as few parts as `memory` allows."""
    offsets = prod(layer.kernel_size) if isinstance(layer, CONVS) else 1
    n = offsets * len(units)
    if _bytes(n, 1) * COPIES <= memory:
        return torch.arange(n)[None]
    columns = torch.arange(n).view(offsets, -1)
    if offsets == 1:  # a flattened map: the places of a unit
        _, counts = units.unique(return_counts=True)
        if bool((counts == counts[0]).all()):
            columns = units.argsort(stable=True).view(-1, int(counts[0])).T.contiguous()
    least = _bytes(n, len(columns)) * COPIES
    if least > memory:
        raise SlimrankError(f"`memory` {memory:,} bytes are too few for layer {name}, which takes {least:,}; raise it")
    return columns


def _bytes(columns: int, parts: int) -> int:
    """Of second moments in float64."""
    return 8 * columns * columns // parts


def _shares(reads: dict[str, Read], memory: int) -> Iterator[dict[str, Read]]:
    """Layers whose moments fit in `memory` together, in forward order."""
    share: dict[str, Read] = {}
    held = largest = 0
    for name, read in reads.items():
        size = _bytes(read.columns.numel(), len(read.columns))
        largest = max(largest, size)
        if share and held + size + (COPIES - 1) * largest > memory:
            yield share
            share, held, largest = {}, 0, size
        share[name] = read
        held += size
    yield share


@contextmanager
def _watched(model: nn.Module, reads: dict[str, Read], images: int, generator: torch.Generator) -> Iterator[None]:
    """Count what the layers read, and see whether a BatchNorm follows them, within the context."""
    latest: list[tuple[Read, Tensor]] = []

    def count(read: Read, x: Tensor, out: Tensor) -> None:
        shape = out.shape[2:] if isinstance(read.layer, CONVS) else out.shape[1:-1]
        read.add(x, shape, max(ROWS, ROWS_PER_COLUMN * read.columns.shape[1]) / images, generator)
        latest[:] = [(read, out)]

    def norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for read, out in latest:
            if inputs[0] is out:
                read.mean, read.scale = True, _scale(module)

    with ExitStack() as stack:
        for read in reads.values():
            hook = read.layer.register_forward_hook(lambda _m, args, out, read=read: count(read, args[0], out))
            stack.callback(hook.remove)
        for module in model.modules():
            if isinstance(module, BATCHNORM) and module.running_mean is not None:
                stack.callback(module.register_forward_pre_hook(norm).remove)
        yield


def _scale(norm: nn.Module) -> Tensor:
    """What a BatchNorm multiplies each channel by, float64."""
    assert isinstance(norm, BATCHNORM)
    assert norm.running_var is not None
    root = (norm.running_var.detach().cpu().double() + norm.eps).sqrt()
    return 1 / root if norm.weight is None else norm.weight.detach().cpu().double() / root
