"""Measures of single filters: colour selectivity, redundancy, and the images that move them most.

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
    """Colour selectivity of kernels [filters, 3, h, w]: [filters] in 0..1, 0 for a kernel that is the same in R, G and B."""
    energy = weight.square().sum((1, 2, 3))
    grey = 3 * weight.mean(1).square().sum((1, 2))
    return torch.where(energy > 0, 1 - grey / energy.clamp_min(1e-30), 0.0).clamp(0, 1)


def greyed(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The same normalised images [images, 3, h, w] without their colour."""
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(v).view(shape).to(images) for v in (preprocessing.mean, preprocessing.std))
    grey = ((images * std + mean) * torch.tensor(LUMA).view(shape).to(images)).sum(1, keepdim=True)
    return (grey - mean) / std


@dataclass(frozen=True, kw_only=True)
class FilterSurvey:
    """Measures of each layer's filters from one pass over images.

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


def survey_filters(
    responses: Responses, batches: Iterable[tuple[Tensor, Tensor]], preprocessing: Preprocessing, top: int = 5
) -> FilterSurvey:
    """Watch the filters in one pass over `batches`; two forward passes an image where there is colour."""
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
    for layer, layer_moments in moments.items():
        spread = layer_moments.covariance.diagonal().clamp_min(0).sqrt()
        spread = torch.where(spread > 1e-9 * spread.max().clamp_min(1e-30), spread, torch.nan)
        correlation[layer] = layer_moments.covariance / spread[:, None] / spread[None, :]
    colour = {layer: torch.where(total[layer] > 0, 1 - grey[layer] / total[layer].clamp_min(1e-30), 0.0) for layer in grey}
    return FilterSurvey(
        colour=colour if coloured else None,
        response={layer: summed / max(1, n) for layer, summed in total.items()},
        correlation=correlation,
        top={layer: index for layer, (_, index) in best.items()},
        peak={layer: value for layer, (value, _) in best.items()},
        images=n,
    )


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """Repetition of kept filters by pruned ones (Abbasi-Asl & Yu). `pruned`: [(filter, kept filter most like it, correlation)];
    their mean beside the kept filters' own (each with the most similar other kept one). Silent filters are left out."""

    pruned: list[tuple[int, int, float]]
    mean_pruned: float | None
    mean_kept: float | None


def redundancy(correlation: Tensor, pruned: list[int]) -> Redundancy:
    """Find the kept filter most like each of `pruned` (those that CAR would cut first). `correlation`: [units, units]."""
    alive = ~torch.isnan(correlation.diagonal())
    out = torch.zeros(len(correlation), dtype=torch.bool)
    out[pruned] = True
    kept = (~out & alive).nonzero().flatten()
    if not len(kept):
        return Redundancy(pruned=[], mean_pruned=None, mean_kept=None)
    rows = []
    for unit in pruned:
        if alive[unit]:
            value, at = correlation[unit, kept].max(0)
            rows.append((unit, int(kept[at]), round(float(value), 4)))
    own = correlation[kept][:, kept].clone().fill_diagonal_(-torch.inf).amax(1) if len(kept) > 1 else torch.empty(0)
    mean = float(sum(value for _, _, value in rows) / len(rows)) if rows else None
    return Redundancy(pruned=rows, mean_pruned=mean, mean_kept=float(own.mean()) if len(own) else None)


@dataclass(frozen=True, kw_only=True)
class ColourOrder:
    """Colour selectivity of the filters that CAR prunes first (Abbasi-Asl & Yu). `selective` of the first `pruned` are among
    the layer's more selective half; by chance `expected`, and so many or more with probability `p`. `spearman`: of CAR and
    selectivity."""

    pruned: int
    selective: int
    expected: float
    p: float
    spearman: float | None  # none where all are alike


def colour_order(colour: Tensor, order: list[int], pruned: int) -> ColourOrder:
    """Count colour-selective filters among the first pruned. `colour`: selectivity, [units]; `order`: the units, pruned first
    to last.
    """
    n = len(order)
    half = set(colour.topk(n // 2).indices.tolist())
    hits = sum(unit in half for unit in order[:pruned])
    place = torch.empty(n)
    place[order] = torch.arange(n, dtype=torch.float32)
    varied = n > 2 and float(colour.max() - colour.min()) > 1e-9
    return ColourOrder(
        pruned=pruned,
        selective=hits,
        expected=round(pruned * (n // 2) / n, 2),
        p=round(float(hypergeom(n, n // 2, pruned).sf(hits - 1)), 6),
        spearman=round(float(spearmanr(colour.numpy(), place.numpy()).statistic), 4) if varied else None,
    )
