"""Agreement of two rankers: rank correlation and overlap of the top, layer by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from ...errors import SlimrankError
from ...evaluate.pages.plots import pairs
from ...files import ready, write_text
from .scores import FilterScores


@dataclass(frozen=True, kw_only=True)
class LayerAgreement:
    """`spearman`: rank correlation, None where a ranker finds all filters equal; `shared`: filters that both have among their
    best `top` (at most the layer's width); `by_chance`: what two random orders would share."""

    spearman: float | None
    shared: int
    by_chance: float


@dataclass(frozen=True, kw_only=True)
class RankComparison:
    """Agreement of two rankers on every layer that both have scored."""

    rankers: tuple[str, str]
    top: int
    layers: dict[str, LayerAgreement]

    def to_dict(self) -> dict[str, Any]:
        layers = {
            name: {"spearman": layer.spearman, f"top{self.top}": layer.shared, "by_chance": layer.by_chance}
            for name, layer in self.layers.items()
        }
        return {"rankers": self.rankers, "top": self.top, "layers": layers}

    def __str__(self) -> str:
        first, second = self.rankers
        rows = [f"{first} against {second}", f"  {'layer':32} spearman  top {self.top} shared  by chance"]
        for name, layer in self.layers.items():
            rho = "undefined" if layer.spearman is None else f"{layer.spearman:8.3f} "
            rows.append(f"  {name:32} {rho}{layer.shared:11.0f} {layer.by_chance:13.2f}")
        return "\n".join(rows)


def compare_scores(a: FilterScores, b: FilterScores, top: int = 5) -> RankComparison:
    """Compare layers that both have scored. Spearman's rho takes the mean rank of ties; the top breaks them as pruning does.

    Raises SlimrankError when no layer is common to both, or a layer's widths differ.
    """
    if top < 1:
        raise SlimrankError(f"`top` is {top}, must be at least 1 filter")
    common = [name for name in a.scores if name in b.scores]
    if not common:
        raise SlimrankError(
            f"the two files have no layer in common ({', '.join(list(a.scores)[:3])} against {', '.join(list(b.scores)[:3])}); "
            "rank the same checkpoint twice"
        )
    layers = {}
    for name in common:
        x, y = a.scores[name], b.scores[name]
        if len(x) != len(y):
            raise SlimrankError(f"layer {name} has {len(x)} filters in one file and {len(y)} in the other; rank one checkpoint")
        constant = len(set(x)) == 1 or len(set(y)) == 1
        k = min(top, len(x))
        layers[name] = LayerAgreement(
            spearman=None if constant else float(spearmanr(x, y).statistic),
            shared=len(set(a.order(name)[-k:]) & set(b.order(name)[-k:])),
            by_chance=k * k / len(x),
        )
    return RankComparison(rankers=(a.ranker, b.ranker), top=top, layers=layers)


def compare_files(first: Path, second: Path, out: Path | None, top: int) -> RankComparison:
    """`compare_scores` on two scores files; with `out`, their bar charts side by side (.svg)."""
    if out is not None:
        ready(out)
    a, b = FilterScores.load(first), FilterScores.load(second)
    comparison = compare_scores(a, b, top)
    if out is not None:
        best = [{name: s.order(name)[-min(top, len(s.scores[name])) :] for name in comparison.layers} for s in (a, b)]
        left, right = ({name: s.scores[name] for name in comparison.layers} for s in (a, b))
        write_text(out, pairs((a.ranker, b.ranker), left, right, best))
    return comparison
