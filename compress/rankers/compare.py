"""Do two rankers agree? Rank correlation and overlap of the top, layer by layer."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from ...errors import SlimrankError
from ...evaluate.pages.plots import pairs
from ...files import ready, write_text
from .scores import FilterScores


@dataclass(frozen=True)
class Comparison:
    """`layers[name]`: `spearman` (None where a ranker finds all filters equal), `top{k}`, the number of filters that both
    have among their best k (k: at most the layer's width), and `by_chance`, what two random orders would share."""

    rankers: tuple[str, str]
    top: int
    layers: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        a, b = self.rankers
        rows = [f"{a} against {b}", f"  {'layer':32} spearman  top {self.top} shared  by chance"]
        for name, found in self.layers.items():
            rho = "undefined" if found["spearman"] is None else f"{found['spearman']:8.3f} "
            rows.append(f"  {name:32} {rho}{found[f'top{self.top}']:11.0f} {found['by_chance']:13.2f}")
        return "\n".join(rows)


def compare(a: FilterScores, b: FilterScores, top: int = 5) -> Comparison:
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
    layers: dict[str, dict[str, float | None]] = {}
    for name in common:
        x, y = a.scores[name], b.scores[name]
        if len(x) != len(y):
            raise SlimrankError(f"layer {name} has {len(x)} filters in one file and {len(y)} in the other; rank one checkpoint")
        flat = len(set(x)) == 1 or len(set(y)) == 1
        k = min(top, len(x))
        shared = len(set(a.order(name)[-k:]) & set(b.order(name)[-k:]))
        layers[name] = {"spearman": None if flat else float(spearmanr(x, y).statistic), f"top{top}": shared}
        layers[name]["by_chance"] = k * k / len(x)
    return Comparison((a.ranker, b.ranker), top, layers)


def compare_files(first: Path, second: Path, out: Path | None, top: int) -> Comparison:
    """`compare` on two scores files; with `out`, their bar charts side by side (.svg)."""
    if out is not None:
        ready(out)
    a, b = FilterScores.load(first), FilterScores.load(second)
    found = compare(a, b, top)
    if out is not None:
        best = [{name: s.order(name)[-min(top, len(s.scores[name])) :] for name in found.layers} for s in (a, b)]
        left, right = ({name: s.scores[name] for name in found.layers} for s in (a, b))
        write_text(out, pairs((a.ranker, b.ranker), left, right, best))
    return found
