"""What single filters do: colour, redundancy, the classes that they serve, the images that move them most.

Colour selectivity is our rule (Abbasi-Asl & Yu judge by eye): of a first-layer kernel the share of its energy that its mean
over RGB does not explain; deeper, 1 - response to grey images / response to the same images in colour.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.stats import hypergeom, spearmanr
from torch import Tensor

from ...evaluate.data import Preprocessing
from ..channels.features import Moments
from .responses import Responses

LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def kernel_colour(weight: Tensor) -> Tensor:
    """[filters] in 0..1, of kernels [filters, 3, h, w]: 0 for a kernel that is the same in R, G and B."""
    energy = weight.square().sum((1, 2, 3))
    grey = 3 * weight.mean(1).square().sum((1, 2))
    return torch.where(energy > 0, 1 - grey / energy.clamp_min(1e-30), 0.0).clamp(0, 1)


def greyed(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The same normalised images [images, 3, h, w] without their colour."""
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(v).view(shape).to(images) for v in (preprocessing.mean, preprocessing.std))
    grey = ((images * std + mean) * torch.tensor(LUMA).view(shape).to(images)).sum(1, keepdim=True)
    return (grey - mean) / std


@dataclass(frozen=True)
class Survey:
    """What one pass over images tells of each layer's filters.

    `colour[layer]`: [units], None without colour; `response[layer]`: mean |activation|, [units]; `correlation[layer]`: of
    responses, position by position, [units, units], NaN for a silent filter; `top[layer]`: the images that each filter
    answers to most, int64 [units, images], and their largest activation.
    """

    colour: dict[str, Tensor] | None
    response: dict[str, Tensor]
    correlation: dict[str, Tensor]
    top: dict[str, Tensor]
    peak: dict[str, Tensor]
    images: int


def survey(
    responses: Responses, batches: Iterable[tuple[Tensor, Tensor]], preprocessing: Preprocessing, top: int = 5
) -> Survey:
    """One pass; two forward passes an image where there is colour."""
    moments: dict[str, Moments] = {}
    total: dict[str, Tensor] = {}
    grey: dict[str, Tensor] = {}
    best: dict[str, tuple[Tensor, Tensor]] = {}
    coloured, n = len(preprocessing.mean) == 3, 0
    for images, _ in batches:
        for layer, maps in responses(images).items():
            moments.setdefault(layer, Moments()).add(maps.transpose(0, 1).flatten(1).T)
            total[layer] = total.get(layer, torch.zeros(())) + maps.abs().double().mean((2, 3)).sum(0)
            peak = maps.amax((2, 3)).T
            index = torch.arange(n, n + len(images)).expand_as(peak)
            if layer in best:
                peak, index = (torch.cat(both, 1) for both in zip(best[layer], (peak, index), strict=True))
            values, order = peak.topk(min(top, peak.shape[1]), 1)
            best[layer] = (values, index.gather(1, order))
        if coloured:
            for layer, maps in responses(greyed(images, preprocessing)).items():
                grey[layer] = grey.get(layer, torch.zeros(())) + maps.abs().double().mean((2, 3)).sum(0)
        n += len(images)
    correlation = {}
    for layer, found in moments.items():
        spread = found.covariance.diagonal().clamp_min(0).sqrt()
        spread = torch.where(spread > 1e-9 * spread.max().clamp_min(1e-30), spread, torch.nan)
        correlation[layer] = found.covariance / spread[:, None] / spread[None, :]
    colour = {layer: torch.where(total[layer] > 0, 1 - grey[layer] / total[layer].clamp_min(1e-30), 0.0) for layer in grey}
    return Survey(
        colour if coloured else None, {layer: t / max(1, n) for layer, t in total.items()}, correlation,
        {layer: index for layer, (_, index) in best.items()}, {layer: value for layer, (value, _) in best.items()}, n,
    )  # fmt: skip


@dataclass(frozen=True)
class Redundancy:
    """How far pruned filters repeat kept ones: `pruned` [(filter, kept filter most like it, correlation)], and the mean beside
    the kept filters' own (each with the most similar other kept one). Silent filters are left out."""

    pruned: list[tuple[int, int, float]]
    mean_pruned: float | None
    mean_kept: float | None


def redundancy(correlation: Tensor, pruned: list[int]) -> Redundancy:
    """`correlation`: [units, units]; `pruned`: the filters that CAR would cut first."""
    alive = ~torch.isnan(correlation.diagonal())
    out = torch.zeros(len(correlation), dtype=torch.bool)
    out[pruned] = True
    kept = (~out & alive).nonzero().flatten()
    if not len(kept):
        return Redundancy([], None, None)
    rows = []
    for unit in pruned:
        if alive[unit]:
            value, at = correlation[unit, kept].max(0)
            rows.append((unit, int(kept[at]), round(float(value), 4)))
    own = correlation[kept][:, kept].clone().fill_diagonal_(-torch.inf).amax(1) if len(kept) > 1 else torch.empty(0)
    mean = float(sum(value for _, _, value in rows) / len(rows)) if rows else None
    return Redundancy(rows, mean, float(own.mean()) if len(own) else None)


@dataclass(frozen=True)
class ColourOrder:
    """Are the filters that CAR prunes first colour-selective? `selective` of the first `pruned` are among the layer's more
    selective half; by chance `expected`, and so many or more with probability `p`. `spearman`: of CAR and selectivity."""

    pruned: int
    selective: int
    expected: float
    p: float
    spearman: float | None  # none where all are alike


def colour_order(colour: Tensor, order: list[int], pruned: int) -> ColourOrder:
    """`colour`: selectivity [units]; `order`: the units, pruned first to last."""
    n = len(order)
    half = set(colour.topk(n // 2).indices.tolist())
    hits = sum(unit in half for unit in order[:pruned])
    place = torch.empty(n)
    place[order] = torch.arange(n, dtype=torch.float32)
    told = n > 2 and float(colour.max() - colour.min()) > 1e-9
    rank = round(float(spearmanr(colour.numpy(), place.numpy()).statistic), 4) if told else None
    chance = float(hypergeom(n, n // 2, pruned).sf(hits - 1))
    return ColourOrder(pruned, hits, round(pruned * (n // 2) / n, 2), round(chance, 6), rank)
