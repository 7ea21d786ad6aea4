"""Charts as SVG text; plain dicts in."""

import io
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRONG, PALE = "#2463a6", "#d9b38c"


def bars(scores: dict[str, list[float]], kept: dict[str, list[int]] | None = None, columns: int = 4) -> str:
    """Draw the scores of each layer's filters, a bar a filter; filters that are not in `kept` are pale."""
    columns = min(columns, max(1, len(scores)))
    rows = math.ceil(len(scores) / columns)
    figure = _figure(3.1 * columns, 1.55 * rows)
    for i, (layer, values) in enumerate(scores.items()):
        strong = None if kept is None else kept.get(layer)
        _bars(figure.add_subplot(rows, columns, i + 1), layer, values, strong)
    return _svg(figure)


def pairs(
    names: tuple[str, str],
    first: dict[str, list[float]],
    second: dict[str, list[float]],
    best: list[dict[str, list[int]]],
) -> str:
    """Draw two rankers' scores side by side, a row a layer; filters that are not in `best[ranker][layer]` are pale."""
    figure = _figure(7.5, 1.4 * len(first) + 0.2)
    for i, layer in enumerate(first):
        for j, (name, scores) in enumerate(zip(names, (first, second), strict=True)):
            _bars(figure.add_subplot(len(first), 2, 2 * i + j + 1), f"{layer}: {name}", scores[layer], best[j][layer])
    return _svg(figure)


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
    axes.set_title(title, fontsize=7, loc="left")
    axes.set_xlim(-0.5, len(heights) - 0.5)
    axes.set_ylim(low * 1.05, max(float(heights.max()), low + 1e-9, 1e-9) * 1.05)
    axes.tick_params(labelsize=6, length=2)
    axes.locator_params(axis="y", nbins=3)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.spines[["top", "right"]].set_visible(False)


def widths(before: dict[str, int], after: dict[str, int]) -> str:
    """Draw the number of filters in each layer, before (outline) and after (filled)."""
    names = list(before)
    figure = _figure(7.5, 0.22 * len(names) + 0.6)
    axes = figure.add_subplot()
    place = np.arange(len(names))[::-1]
    axes.barh(place, [before[n] for n in names], 0.8, color="#eef2f6", edgecolor="#9aa7b4", linewidth=0.5)
    axes.barh(place, [after[n] for n in names], 0.8, color=STRONG)
    for y, name in zip(place, names, strict=True):
        axes.text(before[name], y, f" {before[name]} → {after[name]}", va="center", fontsize=6)
    axes.set_yticks(place, names, fontsize=6)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlabel("filters", fontsize=7)
    axes.set_xlim(0, max(before.values()) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def curves(points: dict[str, list[list[float]]], what: str, columns: int = 4) -> str:
    """Draw a quantity (`what`) against the share of a layer's filters removed, a chart a layer.

    `points[layer]`: [share, _, quantity]; curves of few points show them.
    """
    columns = min(columns, max(1, len(points)))
    rows = math.ceil(len(points) / columns)
    figure = _figure(2.6 * columns, 1.6 * rows)
    top = max(p[2] for layer in points.values() for p in layer)
    for i, (layer, values) in enumerate(points.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.axhline(values[0][2], color="#9aa7b4", linewidth=0.7, linestyle=":")
        marker = "o" if len(values) < 20 else ""
        axes.plot([p[0] for p in values], [p[2] for p in values], color=STRONG, marker=marker, markersize=2.5, linewidth=1.2)
        axes.set_title(layer, fontsize=7, loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.08 * max(top, 1e-9))
        axes.tick_params(labelsize=6, length=2)
        axes.locator_params(nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of the layer's filters removed", fontsize=7)
    figure.supylabel(what, fontsize=7)
    return _svg(figure)


def heat_table(values: list[list[float]], rows: list[int], columns: list[int], down: str, across: str, title: str) -> str:
    """Draw a matrix of shares, every cell coloured and labelled in percent; `down` and `across` name the axes."""
    figure = _figure(1.4 + 0.8 * len(columns), 1.2 + 0.5 * len(rows))
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
    return _svg(figure)


def _figure(width: float, height: float) -> "Figure":
    """Make an empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    """Write a figure as SVG text, the same text for the same figure: no date, no random identifiers."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "slimrank"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
