"""explain.html: one self-contained page about a network's filters and features, made from its explain.json and pictures."""

from dataclasses import dataclass
from typing import Any

from .render import render


@dataclass(frozen=True)
class Detector:
    """The unit of a layer that detects `concept` best, with its IoU."""

    concept: str
    unit: int
    iou: float


def explain_page(found: dict[str, Any], pictures: dict[str, dict[str, Any]], kernels: str | None) -> str:
    """Render explain.html; every figure comes from `found`, the object in explain.json.

    `pictures`, by layer: `maps`, a data URI; `best` and `worst`, the filters shown; `strips`, a data URI for each of these.
    `kernels`: the first layer's, as a data URI; None leaves them out.
    """
    dissection = found.get("dissection")
    detectors = {} if dissection is None else _best_detectors(dissection["layers"], dissection["iou_over"])
    return render("explain.html.jinja", found=found, pictures=pictures, kernels=kernels, detectors=detectors)


def _best_detectors(layers: dict[str, dict[str, Any]], threshold: float) -> dict[str, list[Detector]]:
    """Each layer's detected concepts (IoU over `threshold`) with the best unit of each, largest IoU first."""
    detectors: dict[str, list[Detector]] = {}
    for name, layer in layers.items():
        best: dict[str, Detector] = {}
        for unit, (concept, _, iou) in enumerate(layer["units"]):
            if iou > threshold and (concept not in best or iou > best[concept].iou):
                best[concept] = Detector(concept, unit, iou)
        detectors[name] = sorted(best.values(), key=lambda detector: -detector.iou)
    return detectors
