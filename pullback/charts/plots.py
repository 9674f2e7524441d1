"""Curves, points with error bars, and maps: the figures of pages that show no run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pullback.charts.chart import PALETTE, REFERENCE_COLOUR, Cell, Chart, Table, axis, base_layout, log_axis
from pullback.charts.text import number


@dataclass(frozen=True)
class Curve:
    """One line or cloud of points.

    Attributes:
        name: in the legend and the table.
        x: positions.
        y: heights, as many.
        style: "line" (few points are marked), "plain" (never marked), "points", "dash" (a reference line, never marked)
            or "bars".
        colour: a CSS colour; None takes the next one of the palette.
        stderr: standard errors of ``y``, drawn as bars.
        legend: whether the legend names it; points beside a line of their colour need not be named twice.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    colour: str | None = None
    stderr: Sequence[float] | None = None
    legend: bool = True


def beside(
    name: str,
    x: Sequence[float],
    theory: Sequence[float],
    points: Sequence[float],
    stderr: Sequence[float] | None = None,
    colour: str | None = None,
    *,
    legend: bool = True,
) -> list[Curve]:
    """Theory as a line, and what was found at the same places as points of its colour."""
    line = Curve(name, x, theory, "plain", colour, legend=legend)
    return [line, Curve(f"{name}, networks", x, points, "points", colour, stderr, legend=False)]


def curves(
    key: str,
    title: str,
    reading: str,
    drawn: Sequence[Curve],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    summary: Sequence[str] = (),
    height: int = 340,
    x_range: Sequence[float] | None = None,
    y_range: Sequence[float] | None = None,
) -> Chart:
    """A chart of curves over one axis, with a table that has a row for every point of every curve.

    Args:
        key: identifies the chart on its page, letters and hyphens.
        title: what it shows.
        reading: one sentence on how to read it.
        drawn: the curves.
        x: title of the horizontal axis.
        y: title of the vertical axis.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        summary: the numbers in words; made from the curves' ends if empty.
        height: in pixels.
        x_range: ends of a linear horizontal axis.
        y_range: ends of a linear vertical axis.
    """
    layout = base_layout(height) | {"showlegend": len(drawn) > 1, "hovermode": "closest"}
    layout["height"] += 6 * max(0, sum(curve.legend for curve in drawn) - 3)
    for name, text, is_log, values, reach in (
        ("xaxis", x, log_x, [v for c in drawn for v in c.x], x_range),
        ("yaxis", y, log_y, [v for c in drawn for v in _heights(c)], y_range),
    ):
        layout[name] = log_axis(text, values) if is_log else axis(text, **({"range": list(reach)} if reach else {}))
    rows: list[list[Cell]] = [[c.name, short(a), short(b)] for c in drawn for a, b in zip(c.x, c.y, strict=True)]
    table = Table(title, ("Curve", x, y), rows)
    sentences = tuple(summary) or tuple(_ends(curve, x) for curve in drawn)
    figure = {"data": [trace_of(c, place) for place, c in enumerate(drawn)], "layout": layout}
    return Chart(key, title, reading, sentences, figure, (table,))


def _heights(curve: Curve) -> list[float]:
    """All that the vertical axis should show: the points and the ends of their error bars."""
    errors = [0.0] * len(curve.y) if curve.stderr is None else curve.stderr
    return [v + side * e for v, e in zip(curve.y, errors, strict=True) for side in ((-1, 0, 1) if e == e else (0,))]


def _ends(curve: Curve, x: str) -> str:
    """A curve in a sentence: where it begins and where it ends."""
    first, last = (f"{number(float(curve.y[at]), 4)} at {x} = {number(float(curve.x[at]), 4)}" for at in (0, -1))
    return f"{curve.name}: {first}, {last}."


def short(value: float) -> float:
    """Seven digits: more than a drawing shows, and half the size on the page."""
    return float(f"{value:.7g}")


def trace_of(curve: Curve, place: int) -> dict[str, Any]:
    """One curve for Plotly."""
    dashed = curve.style == "dash"
    colour = curve.colour or (REFERENCE_COLOUR if dashed else PALETTE[place % len(PALETTE)])
    x, y = [short(v) for v in curve.x], [short(v) if v == v else None for v in curve.y]
    shared: dict[str, Any] = {"name": curve.name, "x": x, "y": y} | ({} if curve.legend else {"showlegend": False})
    if curve.style == "bars":
        return shared | {"type": "bar", "marker": {"color": colour}}
    if curve.stderr is not None:
        shared["error_y"] = {"array": [short(v) for v in curve.stderr], "thickness": 1, "width": 3}
    joined = "lines" if curve.style in ("plain", "dash") or len(x) > 24 else "lines+markers"
    return shared | {
        "type": "scatter",
        "mode": "markers" if curve.style == "points" else joined,
        "line": {"color": colour, "width": 2, "dash": "dash" if dashed else "solid"},
        "marker": {"size": 7, "color": colour},
    }
