"""Charts as SVG text; plain dicts in."""

import io
import math
import re
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from .names import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, STRONG, PALE, WHITE = "#1c2733", "#5b6b7a", "#2463a6", "#c3d1e0", "#ffffff"
THEME = {INK: "ink", GREY: "pale", STRONG: "strong", PALE: "faint", WHITE: "page"}  # variables of base.html
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "slimrank", "text.parse_math": False, "font.size": 8, "text.color": INK,
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "xtick.color": GREY, "ytick.color": GREY, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 2, "ytick.major.size": 2, "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "axes.titlelocation": "left",
}  # fmt: skip
P = ParamSpec("P")


def chart(draw: "Callable[P, Figure]") -> Callable[P, str]:
    """Let a function that draws a figure return SVG text, the same text for the same figure: no date, no random identifiers."""

    @wraps(draw)
    def drawn(*words: P.args, **more: P.kwargs) -> str:
        import matplotlib

        buffer = io.StringIO()
        with matplotlib.rc_context(STYLE):
            draw(*words, **more).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    return drawn


def themed(svg: str) -> str:
    """A chart to stand in a page: in the page's colours and its font."""
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S))
    svg = re.sub(r"(<svg [^>]*?) width=\"[^\"]*\" height=\"[^\"]*\"", r"\1", svg)
    return re.sub(r"#[0-9a-f]{6}", lambda found: f"var(--{THEME[found[0]]})" if found[0] in THEME else found[0], svg)


def alone(svg: str) -> str:
    """A chart as a file of its own, in colours for a light or a dark ground as the system is."""
    light = "".join(f"--{name}: {colour};" for colour, name in THEME.items())
    dark = "--ink: #dfe6ee; --pale: #95a3b2; --strong: #69a8e8; --faint: #3a4d61; --page: #0d1117;"
    sheet = f"svg {{{light} font-family: system-ui, sans-serif}} @media (prefers-color-scheme: dark) {{svg {{{dark}}}}}"
    size = re.search(r'<svg [^>]*?(width="[^"]*" height="[^"]*")', svg)
    return re.sub(r"<svg ([^>]*)>", rf"<svg {size[1] if size else ''} \1><style>{sheet}</style>", themed(svg), count=1)


@chart
def bars(scores: dict[str, list[float]], kept: dict[str, list[int]] | None = None, columns: int = 4) -> "Figure":
    """Draw the scores of each layer's filters, a bar a filter; filters that are not in `kept` are pale."""
    columns = min(columns, max(1, len(scores)))
    rows = math.ceil(len(scores) / columns)
    figure = figure_of(2.4 * columns, 1.35 * rows)
    for i, (layer, values) in enumerate(scores.items()):
        strong = None if kept is None else kept.get(layer)
        _bars(figure.add_subplot(rows, columns, i + 1), layer, values, strong)
    return figure


@chart
def layer_bars(layer: str, values: list[float], kept: list[int]) -> "Figure":
    """Draw the scores of one layer's filters; those that are not in `kept` are pale."""
    figure, (axes,) = row_of_charts(1, 2.4, 1.35)
    _bars(axes, layer, values, kept)
    return figure


@chart
def pairs(
    names: tuple[str, str],
    first: dict[str, list[float]],
    second: dict[str, list[float]],
    best: list[dict[str, list[int]]],
) -> "Figure":
    """Draw two rankers' scores side by side, a row a layer; filters that are not in `best[ranker][layer]` are pale."""
    figure = figure_of(7.5, 1.4 * len(first) + 0.2)
    for i, layer in enumerate(first):
        for j, (name, scores) in enumerate(zip(names, (first, second), strict=True)):
            _bars(figure.add_subplot(len(first), 2, 2 * i + j + 1), f"{layer}: {name}", scores[layer], best[j][layer])
    return figure


def _bars(axes: "Axes", title: str, values: list[float], strong: list[int] | None) -> None:
    heights = np.array(values)
    is_strong = np.full(len(heights), strong is None)
    is_strong[strong or []] = True
    # one filled outline for all bars of a colour: a few hundred bytes, however many filters
    edges = np.arange(len(heights) + 1) - 0.5
    low = min(0.0, float(heights.min()))
    for mask, colour in ((is_strong, STRONG), (~is_strong, PALE)):
        if mask.any():  # bars stand on zero, negative ones hang from it
            axes.stairs(np.where(mask, heights, 0.0), edges, baseline=0.0, fill=True, color=colour)
    axes.set_title(visible(title))
    axes.set_xlim(-0.5, len(heights) - 0.5)
    axes.set_ylim(low * 1.05, max(float(heights.max()), low + 1e-9, 1e-9) * 1.05)
    axes.locator_params(axis="y", nbins=3)
    axes.locator_params(axis="x", nbins=5, integer=True)


@chart
def curves(points: dict[str, list[list[float]]], what: str, columns: int = 4) -> "Figure":
    """Draw a quantity (`what`) against the share of a layer's filters removed, a chart a layer.

    `points[layer]`: [share, _, quantity]; curves of few points show them.
    """
    columns = min(columns, max(1, len(points)))
    rows = math.ceil(len(points) / columns)
    figure = figure_of(2.6 * columns, 1.6 * rows)
    top = max(p[2] for layer in points.values() for p in layer)
    for i, (layer, values) in enumerate(points.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.axhline(values[0][2], color="#9aa7b4", linewidth=0.7, linestyle=":")
        marker = "o" if len(values) < 20 else ""
        axes.plot([p[0] for p in values], [p[2] for p in values], color=STRONG, marker=marker, markersize=2.5, linewidth=1.2)
        axes.set_title(visible(layer))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.08 * max(top, 1e-9))
        axes.locator_params(nbins=4)
    figure.supxlabel("share of the layer's filters removed", fontsize=8)
    figure.supylabel(what, fontsize=8)
    return figure


@chart
def heat_table(values: list[list[float]], rows: list[int], columns: list[int], down: str, across: str, title: str) -> "Figure":
    """Draw a matrix of shares, every cell coloured and labelled in percent; `down` and `across` name the axes."""
    figure = figure_of(1.4 + 0.8 * len(columns), 1.2 + 0.5 * len(rows))
    axes = figure.subplots()
    axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), [str(c) for c in columns])
    axes.set_yticks(range(len(rows)), [str(r) for r in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_title(title, fontsize=9)
    middle = (min(map(min, values)) + max(map(max, values))) / 2
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{100 * value:.1f}", ha="center", va="center", color="black" if value > middle else "white", fontsize=8
            )
    return figure


def figure_of(width: float, height: float) -> "Figure":
    """Make an empty figure, sizes in inches, that fits its parts itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=72, layout="constrained")


def row_of_charts(count: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Make a figure of charts side by side, each of that size in inches, with the usual margins.

    Places in them are known at once, and they draw in half of the time.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(count * width, height), dpi=72)
    left, right, below, above = 34 / 72, 6 / 72, 30 / 72, 17 / 72  # for labels
    share, tall = (width - left - right) / width / count, 1 - (below + above) / height
    places = [((i + left / width) / count, below / height, share, tall) for i in range(count)]
    return figure, [figure.add_axes(place) for place in places]
