"""The result of `explain`: everything that was measured, its table, its JSON and its page."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import SlimrankError
from ...evaluate.concepts import Dissection
from ...evaluate.pages.explain import explain_page
from ...files import ready, write_json, write_text
from .class_part import ClassPart
from .layers import LayerReport
from .panels import LayerPanels


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a network's filters and features mean. `classes`: None where the classifier is not one linear layer.
    `filter_images`: validation images that filters were scored and watched on. `panels`, `kernels`: for the page alone."""

    model: str
    data: str
    class_names: list[str]
    class_ids: list[str]
    classes: ClassPart | None
    validation_seen_in_training: bool | None
    validation: str
    filter_images: int
    layers: dict[str, LayerReport]
    dissection: Dissection | None
    kernel_order: str
    notes: list[str]
    seconds: float
    panels: dict[str, LayerPanels] = field(repr=False)
    kernels: str | None = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """explain.json: the classes' part stands beside the rest, parts that do not apply are left out."""
        seen = self.validation_seen_in_training
        dissection = self.dissection
        return {
            "model": self.model, "data": self.data, "class_names": self.class_names, "class_ids": self.class_ids,
            **({} if self.classes is None else self.classes.to_dict()),
            "validation_seen_in_training": seen, "validation": self.validation, "filter_images": self.filter_images,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
            **({} if dissection is None else {"dissection": {**dissection.to_dict(), "table": str(dissection)}}),
            "kernel_order": self.kernel_order, "notes": self.notes, "seconds": self.seconds,
        }  # fmt: skip

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write explain.json and explain.html; each whole or not at all."""
        paths = check_out(folder)
        found = self.to_dict()
        write_json(paths[0], found)
        write_text(paths[1], explain_page(found, {name: asdict(p) for name, p in self.panels.items()}, self.kernels))
        return paths

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.seconds:.0f} s"]
        if self.classes is not None:
            lines.append(str(self.classes))
        lines.append(
            f"  {'layer':28} filters  serves most                      colour  pruned repeat kept (kept among themselves)"
        )
        for name, layer in self.layers.items():
            best = layer.order[-1]
            serves = f"{best}: {', '.join(c for c, _ in layer.filters[best].serves[:2]) or 'no class'}"
            colour = "      -" if layer.mean_colour is None else f"{layer.mean_colour:7.3f}"
            correlations = (layer.redundancy.mean_pruned, layer.redundancy.mean_kept)
            alike = " ".join("    -" if value is None else f"{value:.3f}" for value in correlations)
            lines.append(f"  {name:28} {len(layer.filters):7}  {serves:30.30} {colour}  {alike}")
        if self.dissection is not None:
            lines.append(str(self.dissection))
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def check_out(folder: Path) -> tuple[Path, Path]:
    """Where the two files go. Raises SlimrankError, before long work, where they cannot be written."""
    paths = folder / "explain.json", folder / "explain.html"
    for path in paths:
        if path.is_dir():
            raise SlimrankError(f"cannot write {path}: it is a folder; name another folder with `out`")
        ready(path)
    return paths
