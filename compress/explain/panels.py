"""Pictures of filters as data URIs: their maps, the images that move them most, first-layer kernels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...evaluate.data import Images
from ...evaluate.pages import pictures
from .filters import FilterSurvey
from .layers import LayerReport
from .responses import Responses

MOST_IMPORTANT, LEAST_IMPORTANT = 6, 3  # filters that are shown
SHOWN_IMAGES = 4  # on which their maps are shown


@dataclass(frozen=True, kw_only=True)
class LayerPanels:
    """`maps`: those of the filters `best` and `worst`; `strips[unit]`: the images that move a filter most."""

    maps: str
    best: list[int]
    worst: list[int]
    strips: dict[int, str]


def layer_panels(report: LayerReport, name: str, survey: FilterSurvey, responses: Responses, images: Images) -> LayerPanels:
    """Draw the most and least important filters' maps on images of different classes, and the images that move each most."""
    order = report.order
    worst, best = order[: min(LEAST_IMPORTANT, len(order) // 2)], order[::-1][:MOST_IMPORTANT]
    labels = images.labels.tolist()
    firsts = [labels.index(c) for c in sorted(set(labels))]
    places = np.linspace(0, len(firsts) - 1, min(SHOWN_IMAGES, len(firsts))).round().astype(int)
    pixels = images.pixels(torch.tensor([firsts[i] for i in places]))
    maps = responses(images.preprocessing.normalise(pixels))[name]
    peaks = maps.amax((0, 2, 3))
    rows = [
        [pictures.photograph(p.numpy()), *(pictures.heat(maps[i, u].numpy(), float(peaks[u])) for u in best), None]
        + [pictures.heat(maps[i, u].numpy(), float(peaks[u])) for u in worst]
        for i, p in enumerate(pixels)
    ]
    strips = {}
    for unit in (*best, *worst):
        photographs = [pictures.photograph(p.numpy()) for p in images.pixels(survey.top[name][unit])]
        strips[unit] = pictures.uri(pictures.montage([photographs], 48, smooth=True), True)
    return LayerPanels(maps=pictures.uri(pictures.montage(rows, 56)), best=best, worst=worst, strips=strips)


def kernels_panel(conv: nn.Module, report: LayerReport | None) -> str | None:
    """Draw first-layer kernels, most important first where CAR has looked at them; None unless they read 1 or 3 channels."""
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.detach().cpu().numpy()
    if weight.shape[1] not in (1, 3):
        return None
    order = report.order[::-1] if report is not None else list(range(len(weight)))
    tiles = [pictures.kernel(weight[i]) for i in order]
    return pictures.uri(pictures.montage([tiles[i : i + 8] for i in range(0, len(tiles), 8)], 36))
