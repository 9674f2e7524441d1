"""The figures pages draw: those of ``pullback.charts.plots``, slides, hills and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pullback.charts.chart import (
    DIVERGING,
    Cell,
    Chart,
    Figure,
    Frame,
    Table,
    axis,
    base_layout,
    below_colour_bar,
    colour_bar,
)
from pullback.charts.maps import coloured, grid_rows, heat_map
from pullback.charts.plots import Curve, beside, curves, short, trace_of

__all__ = ["Curve", "beside", "contours", "curves", "heat_map", "matrix", "slides"]


def slides(charts: Sequence[Chart], labels: Sequence[str]) -> Chart:
    """Charts of one key as one, behind a slider; the last is shown first, and gives the title and how to read it."""
    traces = [(place, trace) for place, chart in enumerate(charts) for trace in chart.figure["data"]]
    last = len(charts) - 1
    frames = tuple(
        Frame(label, [owner == place for owner, _ in traces], _axes(charts[place]))
        for place, label in enumerate(labels)
    )
    data = [trace | {"visible": owner == last} for owner, trace in traces]
    return replace(
        charts[-1],
        summary=tuple(sentence for chart in charts for sentence in chart.summary),
        figure=charts[-1].figure | {"data": data},
        tables=tuple(table for chart in charts for table in chart.tables),
        frames=frames,
    )


def _axes(chart: Chart) -> Figure:
    """Axes that fit one chart."""
    return {name: chart.figure["layout"][name] for name in ("xaxis", "yaxis")}


def contours(
    key: str,
    title: str,
    reading: str,
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    z: tuple[str, Sequence[Sequence[float]]],
    *,
    top: float | None = None,
    points: Sequence[Curve] = (),
    summary: Sequence[str] = (),
    height: int = 420,
) -> Chart:
    """A map of heights over two axes of one scale, with curves or points on it.

    Args:
        key: identifies the chart on its page, letters and hyphens.
        title: what it shows.
        reading: one sentence on how to read it.
        x: title and positions of the horizontal axis.
        y: title and positions of the vertical axis.
        z: title and heights, one row for each position of ``y``.
        top: heights above this one share a colour.
        points: what is drawn on the map.
        summary: the numbers in words.
        height: in pixels.
    """
    flat = [value for row in z[1] for value in row]
    low, high = min(flat), max(flat) if top is None else top
    trace = {
        "type": "contour",
        "x": [short(v) for v in x[1]],
        "y": [short(v) for v in y[1]],
        "contours": {"start": low, "end": high, "size": (high - low) / 24},
        "line": {"width": 0.4, "color": "rgba(255,255,255,0.5)"},
    } | coloured(*z, (low, high))
    layout: Figure = below_colour_bar(base_layout(height))
    layout["xaxis"] = axis(x[0], constrain="domain", showgrid=False)
    layout["yaxis"] = axis(y[0], scaleanchor="x", constrain="domain", showgrid=False)
    table = Table(title, (x[0], y[0], z[0]), grid_rows(x[1], y[1], z[1]))
    marks = [trace_of(each, place) for place, each in enumerate(points)]
    return Chart(key, title, reading, tuple(summary), {"data": [trace, *marks], "layout": layout}, (table,))


def matrix(key: str, title: str, reading: str, entries: Sequence[Sequence[float]], *, height: int = 380) -> Chart:
    """A matrix as an image: blue above zero, orange below, on a scale of its own.

    Args:
        key: identifies the chart on its page, letters and hyphens.
        title: what it shows.
        reading: one sentence on how to read it.
        entries: rows.
        height: in pixels.
    """
    z = [[float(f"{v:.3g}") for v in row] for row in entries]  # as many digits as colours can tell
    reach = max(abs(v) for row in z for v in row) or 1.0
    bar = colour_bar((-reach, 0, reach), (f"{-reach:.3g}", "0", f"{reach:.3g}"))
    trace = {
        "type": "heatmap",
        "z": z,
        "zmin": -reach,
        "zmax": reach,
        "colorscale": DIVERGING,
        "colorbar": bar,
        "hovertemplate": "row %{y}, column %{x}: %{z:.4g}<extra></extra>",
    }
    layout = below_colour_bar(base_layout(height))
    layout["xaxis"] = axis("column", constrain="domain", showgrid=False)
    layout["yaxis"] = axis("row", scaleanchor="x", constrain="domain", showgrid=False, autorange="reversed")
    summary = f"{len(z)} x {len(z[0])}, entries from {min(map(min, z)):.3g} to {max(map(max, z)):.3g}."
    rows: list[list[Cell]] = [[place, *row] for place, row in enumerate(z)]
    table = Table(title, ("row", *map(str, range(len(z[0])))), rows)
    return Chart(key, title, reading, (summary,), {"data": [trace], "layout": layout}, (table,))
