"""The chart of a front: what is good about networks against what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .names import visible
from .plots import GREY, INK, PALE, STRONG, WHITE, chart, row_of_charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """A network in a chart of costs. `label` stands beside it, `tip` is told where the mouse rests; `kind` is a row's."""

    cost: float
    good: float
    label: str
    kind: str
    on_front: bool
    tip: str
    row: str


LOOKS: dict[str, dict[str, Any]] = {
    "dense": {"marker": "s", "markerfacecolor": WHITE, "markeredgecolor": GREY},
    "rival": {"marker": "^", "markerfacecolor": PALE, "markeredgecolor": GREY},
    "float": {"marker": "o", "markerfacecolor": WHITE, "markeredgecolor": STRONG},
    "slimrank": {"marker": "o", "markerfacecolor": STRONG, "markeredgecolor": STRONG},
}


@dataclass(frozen=True)
class Panel:
    """One chart: networks against what is said of their cost."""

    cost: str
    points: Sequence[Point]


def front(panels: Sequence[Panel], good: str, width: float = 3.2, height: float = 2.5) -> str:
    """Draw what is good about networks (a share) against what they cost, with a line through those that nothing beats.

    `width` of each panel and `height` in inches.
    """
    svg = _front(panels, good, width, height)
    for point in (point for panel in panels for point in panel.points):
        tip = f'<g class="point" data-row="{point.row}"><title>{escape(visible(point.tip))}</title>'
        svg = svg.replace(f'<g id="point-{point.row}">', tip)
    return svg


@chart
def _front(panels: Sequence[Panel], good: str, width: float, height: float) -> "Figure":
    figure, charts = row_of_charts(len(panels), width, height)
    for axes, panel in zip(charts, panels, strict=True):
        axes.set_xlabel(panel.cost)
        axes.set_title(good)
        _draw(axes, panel.points)
    return figure


def _draw(axes: "Axes", points: Sequence[Point]) -> None:
    from matplotlib.ticker import PercentFormatter

    best = sorted((p.cost, p.good) for p in points if p.on_front)
    axes.plot([c for c, _ in best], [g for _, g in best], drawstyle="steps-post", color=STRONG, linewidth=0.8, alpha=0.6)
    for point in points:
        line = axes.plot(point.cost, point.good, linestyle="", markersize=6, markeredgewidth=0.9, **LOOKS[point.kind])[0]
        line.set_gid(f"point-{point.row}")
    axes.set_xlim(0, 1.08 * max(p.cost for p in points))
    low, high = min(p.good for p in points), max(p.good for p in points)
    pad = max(0.12 * (high - low), 0.01)
    axes.set_ylim(max(0.0, low - pad), min(1.0, high) + (pad if high < 1 - pad else 0.05 * (high - low + pad)))
    axes.locator_params(nbins=6)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0 if high - low > 0.06 else 1))
    axes.grid(axis="y", color=PALE, linewidth=0.4)
    _label(axes, points)


def _label(axes: "Axes", points: Sequence[Point]) -> None:
    """Write each point's label beside it, where it covers least of what is there."""
    places = [axes.transData.transform((p.cost, p.good)) for p in points]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    inside = axes.get_window_extent()
    for point, (x, y) in zip(points, places, strict=True):
        width, height = (4.9 if point.on_front else 4.3) * len(point.label), 8.0
        boxes = {
            (7, 0, "left"): (x + 6, y - 4), (-7, 0, "right"): (x - 6 - width, y - 4), (0, 9, "center"): (x - width / 2, y + 6),
            (0, -9, "center"): (x - width / 2, y - 14), (6, 8, "left"): (x + 5, y + 4), (6, -8, "left"): (x + 5, y - 12),
            (-6, 9, "right"): (x - 5 - width, y + 5), (-6, -9, "right"): (x - 5 - width, y - 13),
        }  # fmt: skip
        if not point.label:
            continue
        costs = []
        for left, low in boxes.values():
            box = (left, low, left + width, low + height)
            out = max(0.0, inside.x0 - box[0]) + max(0.0, box[2] - inside.x1)
            costs.append(sum(_shared(box, other) for other in taken) + 20 * out)
        (dx, dy, side), (left, low) = list(boxes.items())[int(np.argmin(costs))]
        taken.append((left, low, left + width, low + height))
        look: dict[str, Any] = {"color": INK, "fontweight": "bold"} if point.on_front else {"color": GREY}
        at = (point.cost, point.good)
        axes.annotate(
            visible(point.label), at, (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=7.5, **look
        )


def _shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The area that two boxes (left, low, right, high) share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)
