"""What a layer costs in ONNX Runtime, as a function of the channels it reads and writes: measured, not assumed.

The network and a few copies of it, cut to random widths, are exported and profiled (evaluate/kernels.py). For every layer a
line is fitted through its times, with no negative term:

    ms = a + b * in * out + c * in + d * out          (channels rounded up to the runtime's block)

What runs between one layer and the next (pooling, sums, reordering) counts as the layer before it. The fit serves to choose
widths; what is reported and what budgets are held to is measured afresh.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from tqdm import tqdm

from ...evaluate.kernels import matrices, profile
from ...export.int8 import int8_to_time
from ...export.to_onnx import export
from ...files import Scratch
from ..channels.groups import ChannelMap, Group, stays
from ..network.resize import CONVS
from .surgery import cut

COPIES = 6
GRAIN = 4  # channels; other widths fall out of ONNX Runtime's blocked convolutions altogether


@dataclass(frozen=True)
class Costs:
    """`terms[layer]`: a, b, c, d above, in shares of the whole network's time, averaged over the batch sizes.

    `measured[batch][layer]`: the whole network's own milliseconds on `threads` threads. `error`: how far the fit was off, at
    worst, on the copies that it was made from (share of their time).
    """

    terms: dict[str, tuple[float, ...]]
    measured: dict[int, dict[str, float]]
    block: int
    threads: int
    error: float

    def layers(self, model: nn.Module, channels: ChannelMap, gone: Tensor) -> dict[str, float]:
        """Each layer's share of the whole network's time once the units in `gone` ([all units], boolean) are cut."""
        found = {}
        for name, (a, b, c, d) in self.terms.items():
            n_in, n_out = _channels(model, channels, name, gone, self.block)
            found[name] = a + b * n_in * n_out + c * n_in + d * n_out
        return found

    def share(self, model: nn.Module, channels: ChannelMap, gone: Tensor) -> float:
        """Time without the units in `gone`; about 1 where nothing is gone."""
        return sum(self.layers(model, channels, gone).values())

    def saving(self, model: nn.Module, channels: ChannelMap, group: Group) -> float:
        """Share of the time that one unit less saves, averaged over the last block (a unit alone may save nothing)."""
        step = unit_step(model, group, self.block)
        n = max(1, min(group.units - 1, step if group.units > step else group.units // 2))
        gone = channels.removed({})
        whole = self.share(model, channels, gone)
        gone[group.offset : group.offset + n] = True
        return max(1e-12, (whole - self.share(model, channels, gone)) / n)


def measure_costs(
    model: nn.Module, channels: ChannelMap, example: Tensor,
    *, block: int, batches: Sequence[int] = (1,), threads: int = 1, seed: int = 0, int8: bool = False,
) -> Costs:  # fmt: skip
    """Profile `model` and COPIES copies of random widths; takes an export of each, and a second for each batch size.

    `int8`: what the layers cost in int8.

    Raises SlimrankError where the exporter or ONNX Runtime refuses the model.
    """
    cuts = [channels.removed({}), *_random(model, channels, block, torch.Generator().manual_seed(seed))]
    times: list[dict[int, dict[str, float]]] = []
    widths = []
    with Scratch() as folder:
        for gone in tqdm(cuts, desc="time of layers", leave=False, disable=None):
            copy = cut(model, channels, gone)
            path = export(copy, example, Path(folder) / "copy.onnx", {})
            timed = int8_to_time(path, Path(folder) / "int8.onnx", example) if int8 else path
            times.append({batch: by_layer(copy, channels, path, batch, threads, timed) for batch in batches})
            widths.append({name: _channels(model, channels, name, gone, block) for name in channels.positions})
    whole = {batch: sum(layers.values()) for batch, layers in times[0].items()}
    shares = [
        {name: sum(t[b].get(name, 0.0) / whole[b] for b in batches) / len(batches) for name in channels.positions}
        for t in times
    ]
    terms: dict[str, tuple[float, ...]] = {}
    for name in channels.positions:
        rows = np.array([[1, i * o, i, o] for i, o in (w[name] for w in widths)], float)
        scale = rows.max(0).clip(1e-12)
        target = np.array([share[name] for share in shares])
        weights = 1 / (target + 0.05 * target.max() + 1e-9)  # relative errors count, not only the widest copy's
        fit, _ = nnls(rows / scale * weights[:, None], target * weights)
        terms[name] = tuple(float(v) for v in fit / scale)
    made = Costs(terms, times[0], block, threads, 0.0)
    totals = [(made.share(model, channels, gone), sum(share.values())) for gone, share in zip(cuts, shares, strict=True)]
    return replace(made, error=max(abs(fitted - real) / real for fitted, real in totals))


def by_layer(
    model: nn.Module, channels: ChannelMap, path: Path, batch: int, threads: int, timed: Path | None = None
) -> dict[str, float]:
    """Milliseconds of each conv and linear layer of an exported network, with what runs before the next one.

    `timed`: the file that runs, where it is the int8 one that was made of `path`.
    """
    owners = {f"{name}.weight": name for name in channels.positions}
    kernels = profile(timed or path, batch=batch, threads=threads)
    linear = {n: m.weight.detach().numpy() for n in channels.positions if isinstance(m := model.get_submodule(n), nn.Linear)}
    unknown = {kernel.weight for kernel in kernels if kernel.weight is not None} - owners.keys()
    for tensor, value in matrices(path, unknown).items():
        found = (n for n, w in linear.items() if w.shape == value.shape[::-1] and np.array_equal(w.T, value))
        owners[tensor] = next(found, "")
    times: dict[str, float] = {}
    layer = next(iter(channels.positions))
    for kernel in kernels:
        layer = owners.get(kernel.weight or "") or layer
        times[layer] = times.get(layer, 0.0) + kernel.median_ms
    return times


def _channels(model: nn.Module, channels: ChannelMap, name: str, gone: Tensor, block: int) -> tuple[int, int]:
    """Channels that a layer reads and writes once `gone` is cut, as the runtime pays for them."""
    module = model.get_submodule(name)
    n_in, n_out = int(stays(channels.reads[name], gone).sum()), int(stays(channels.writes[name], gone).sum())
    if not isinstance(module, CONVS):
        return n_in, n_out
    if module.groups > 1:  # a grouped conv costs what it writes, times the same filter each
        n_in = 1
    return (n_in if n_in < block else -(-n_in // block) * block), -(-n_out // block) * block


def _random(model: nn.Module, channels: ChannelMap, block: int, generator: torch.Generator) -> list[Tensor]:
    """COPIES cuts: each group takes aligned widths spread evenly from a quarter to all of it, in an order of its own."""
    cuts: list[dict[str, list[int]]] = [{} for _ in range(COPIES)]
    for group in channels.groups:
        if not group.prunable:
            continue
        step = unit_step(model, group, block)
        if group.units < 3 * step:  # few blocks: what lies within them matters
            step = unit_step(model, group, min(block, GRAIN))
        free = [u for u in range(group.units) if u not in group.fixed]
        for place, cut_at in enumerate(torch.randperm(COPIES, generator=generator).tolist()):
            share = 0.25 + 0.75 * place / (COPIES - 1)
            n = min(group.units, max(len(group.fixed), 1, round(share * group.units / step) * step, min(step, group.units)))
            cuts[cut_at][group.name] = sorted([*group.fixed, *free[: n - len(group.fixed)]])
    return [channels.removed(keep) for keep in cuts]


def unit_step(model: nn.Module, group: Group, block: int) -> int:
    """Units that make up one block of the runtime; 1 for neurons, which are paid for one by one."""
    if not isinstance(model.get_submodule(group.name), CONVS):
        return 1
    return max(1, block // max(1, group.filters // group.units))
