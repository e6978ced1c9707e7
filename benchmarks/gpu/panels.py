"""Drawing: rows of panels with labelled curves, in colours that the colour-blind tell apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

OURS = "flashmhf"
KNOWN = {  # colours of Okabe and Ito, and markers
    OURS: ("#0072B2", "o"),
    "eager": ("#767676", "s"),
    "Inductor": ("#D55E00", "^"),
    "SwiGLU cuBLAS": ("#767676", "s"),
    "SwiGLU Inductor": ("#D55E00", "^"),
    "SwiGLU Liger": ("#CC79A7", "v"),
}
OTHERS = (("#009E73", "D"), ("#E69F00", "P"), ("#56B4E9", "X"), ("#000000", "*"))
INK, GRID = "#333333", "#E6E6E6"
LABEL_GAP = 0.075  # least distance of two labels, as a share of a panel's height
LABEL_ROOM = 0.42  # what labels take of a panel's width
MOST_NOTES = 4
HALO = [withStroke(linewidth=2.5, foreground="white")]

Styles = dict[str, dict[str, Any]]
"""Colour and marker of each name: the same in all panels of a picture."""


@dataclass(frozen=True)
class Point:
    """A measurement of `name` at `x`: y, and the ends of the band that its repeats lie in."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One set of axes; `notes` are lines about what failed."""

    title: str
    points: list[Point]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """Panels with one quantity on the y axis.

    Attributes:
        label: the quantity and its unit.
        panels: from left to right.
        logarithmic: whether the y axis is; otherwise it begins at 0.
        ceiling: a value to compare with, and what it is.
        categories: names of x = 0, 1, ...; then points are not joined. Without them x are tokens.
    """

    label: str
    panels: list[Panel]
    logarithmic: bool = False
    ceiling: tuple[float, str] | None = None
    categories: Sequence[str] = ()


def draw(rows: Sequence[Row], title: str) -> Figure | None:
    """Draw rows of panels; None if nothing is in them."""
    rows = [across(row) for row in rows if any(panel.points for panel in row.panels)]
    if not rows:
        return None
    columns = max(len(row.panels) for row in rows)
    width = 0.6 + max(3.3 * columns, 7.0)
    figure = Figure(figsize=(width, 0.6 + 3.0 * len(rows)))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.1)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    styles = styles_of([point for row in rows for panel in row.panels for point in panel.points])
    for row, line in zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True):
        for axes in line[len(row.panels) :]:
            axes.axis("off")
        for axes, panel in zip(line, row.panels, strict=False):
            _panel(axes, row, panel, styles)
        line[0].set_ylabel(row.label, fontsize=9, color=INK)
    return figure


def across(row: Row) -> Row:
    """One panel with a place for each of the others, where all were measured at one number of tokens."""
    tokens = {point.x for panel in row.panels for point in panel.points}
    if row.categories or len(tokens) > 1 or len(row.panels) == 1:
        return row
    points = [replace(point, x=place) for place, panel in enumerate(row.panels) for point in panel.points]
    notes = [f"{panel.title}: {note}" for panel in row.panels for note in panel.notes]
    panel = Panel(f"N {short(tokens.pop())}", beside(points), notes)
    return replace(row, panels=[panel], categories=[panel.title for panel in row.panels])


def beside(points: Sequence[Point]) -> list[Point]:
    """Points of categories, a little aside for each name."""
    order = names(points)
    step = 0.6 / max(len(order), 1)
    aside = {name: step * (number - (len(order) - 1) / 2) for number, name in enumerate(order)}
    return [replace(point, x=point.x + aside[point.name]) for point in points]


def _panel(axes: Axes, row: Row, panel: Panel, styles: Styles) -> None:
    axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    curves = {name: [p for p in panel.points if p.name == name] for name in names(panel.points)}
    for name, points in curves.items():
        _curve(axes, name, points, styles[name], joined=not row.categories)
    _y_axis(axes, row, panel.points)
    if row.categories:
        _category_axis(axes, row.categories)
        if curves:
            axes.legend(
                fontsize=8,
                frameon=False,
                labelcolor="linecolor",
                handletextpad=0.1,
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),  # inside it would hide points
            )
    else:
        _token_axis(axes, sorted({p.x for p in panel.points}))
        _label_ends(axes, curves, styles)
    below = [] if row.categories else ["tokens N"]
    axes.set_xlabel("\n".join([*below, *panel.notes[:MOST_NOTES]]), fontsize=8, color=INK)


def names(points: Sequence[Point]) -> list[str]:
    """The names in the order of their first points, ours last: it lies on top."""
    found = dict.fromkeys(point.name for point in points)
    return sorted(found, key=lambda name: name == OURS)


def styles_of(points: Sequence[Point]) -> Styles:
    """Colours and markers; names that are not known get the other ones in turn."""
    others = cycle(OTHERS)
    found = {name: KNOWN.get(name) or next(others) for name in names(points)}
    return {name: {"color": colour, "marker": marker} for name, (colour, marker) in found.items()}


def _curve(axes: Axes, name: str, points: list[Point], style: dict[str, Any], joined: bool) -> None:
    points = sorted(points, key=lambda point: point.x)
    x, y = [p.x for p in points], [p.y for p in points]
    if not joined:
        axes.plot(x, y, linestyle="none", markersize=5.5, alpha=0.75, markeredgewidth=0, label=name, **style)
        return
    low, high = [p.low for p in points], [p.high for p in points]
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, y, linewidth=2.4 if name == OURS else 1.4, markersize=4.5, **style)


def _y_axis(axes: Axes, row: Row, points: Sequence[Point]) -> None:
    if row.logarithmic:
        axes.set_yscale("log")
        axes.margins(y=0.15)  # the names at the ends are a line high
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if y >= 0.001 else f"{y:.0e}"))
        return
    top = max([point.high for point in points] + [row.ceiling[0] if row.ceiling else 0.0])
    axes.set_ylim(0, 1.1 * top if top > 0 and math.isfinite(top) else 1)
    if row.ceiling:
        value, name = row.ceiling
        axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        axes.annotate(
            f"{name}: {value:.3g}",
            (0.02, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            path_effects=HALO,
        )


def _token_axis(axes: Axes, tokens: Sequence[float]) -> None:
    """A logarithmic axis, with room for labels at its right end."""
    axes.set_xscale("log")
    if tokens:
        decades = max(math.log10(tokens[-1] / tokens[0]), 0.3)
        right = decades * LABEL_ROOM / (1 - LABEL_ROOM)
        axes.set_xlim(tokens[0] / 10 ** (0.06 * decades), tokens[-1] * 10**right)
    axes.xaxis.set_major_locator(FixedLocator(list(tokens)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))


def _category_axis(axes: Axes, categories: Sequence[str]) -> None:
    axes.set_xlim(-0.6, len(categories) - 0.4)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(categories)))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda _, place: categories[int(place or 0)]))


def _label_ends(axes: Axes, curves: dict[str, list[Point]], styles: Styles) -> None:
    """Write each curve's name right of its last point, names apart from one another."""
    axes.autoscale_view()  # else limits are not known before the first drawing
    to_share = axes.transData + axes.transAxes.inverted()
    last = {name: max(points, key=lambda point: point.x) for name, points in curves.items()}
    places = {name: to_share.transform((point.x, point.y)) for name, point in last.items()}
    ends = sorted(places.items(), key=lambda end: float(end[1][1]))
    heights = apart([float(at[1]) for _, at in ends], LABEL_GAP)
    for (name, at), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (float(at[0]), height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=styles[name]["color"],
            path_effects=HALO,
            fontweight="bold" if name == OURS else "normal",
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights so that neighbours are `gap` apart, around where they were."""
    groups = [[height, 1] for height in heights]  # centre, number of labels
    while True:
        for i in range(len(groups) - 1):
            (a, m), (b, n) = groups[i : i + 2]
            if b - a < gap * (m + n) / 2:
                groups[i : i + 2] = [[(a * m + b * n) / (m + n), m + n]]
                break
        else:
            break
    return [centre + gap * (k - (number - 1) / 2) for centre, number in groups for k in range(int(number))]


def short(tokens: float) -> str:
    """1024 as 1k."""
    return f"{int(tokens) // 1024}k" if tokens and tokens % 1024 == 0 else f"{tokens:g}"
