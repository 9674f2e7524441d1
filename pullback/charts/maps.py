"""Maps: numbers over two axes, as colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from pullback.charts.chart import (
    SEQUENTIAL,
    Cell,
    Chart,
    Figure,
    Table,
    axis,
    base_layout,
    below_colour_bar,
    colour_bar,
    log_axis,
)
from pullback.charts.plots import Curve, short, trace_of


def heat_map(
    key: str,
    title: str,
    reading: str,
    x: tuple[str, Sequence[float]],
    y: tuple[str, Sequence[float]],
    z: tuple[str, Sequence[Sequence[float]]],
    *,
    bounds: tuple[float, float],
    drawn: Sequence[Curve] = (),
    log_y: bool = False,
    summary: Sequence[str] = (),
    height: int = 420,
) -> Chart:
    """A map of cells over two axes, each with its own scale, with curves or points on it.

    Args:
        key: identifies the chart on its page, letters and hyphens.
        title: what it shows.
        reading: one sentence on how to read it.
        x: title and centres of the cells, two or more; they reach halfway to their neighbours.
        y: the same, upwards.
        z: title and heights, one row for each position of ``y``.
        bounds: heights at the two ends of the colours.
        drawn: what is drawn on the map, cut off where the cells end.
        log_y: logarithmic vertical axis.
        summary: the numbers in words.
        height: in pixels.
    """
    across, up = _edges(x[1]), _edges(y[1], log=log_y)
    trace = {"type": "heatmap", "x": across, "y": up} | coloured(*z, bounds)
    layout: Figure = below_colour_bar(base_layout(height))
    layout["showlegend"] = any(curve.legend for curve in drawn)
    layout["legend"] = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"}
    layout["xaxis"] = axis(x[0], range=[across[0], across[-1]], showgrid=False)
    reach = [math.log10(v) for v in (up[0], up[-1])] if log_y else [up[0], up[-1]]
    layout["yaxis"] = (log_axis(y[0], up) if log_y else axis(y[0])) | {"range": reach, "showgrid": False}
    table = Table(title, (x[0], y[0], z[0]), grid_rows(x[1], y[1], z[1]))
    marks = [trace_of(each, place) for place, each in enumerate(drawn)]
    return Chart(key, title, reading, tuple(summary), {"data": [trace, *marks], "layout": layout}, (table,))


def coloured(title: str, heights: Sequence[Sequence[float]], bounds: tuple[float, float]) -> Figure:
    """Heights as colours between two bounds, with their bar, for Plotly."""
    low, high = bounds
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    return {
        "z": [[short(v) if math.isfinite(v) else None for v in row] for row in heights],
        "zmin": low,
        "zmax": high,
        "colorscale": SEQUENTIAL,
        "colorbar": colour_bar(ticks, [f"{tick:.3g}" for tick in ticks]),
        "hovertemplate": f"{title} %{{z:.4g}}<extra></extra>",
    }


def grid_rows(x: Sequence[float], y: Sequence[float], z: Sequence[Sequence[float]]) -> list[list[Cell]]:
    """A row of the table for each place of a map."""
    return [
        [short(a), short(b), short(value)] for b, row in zip(y, z, strict=True) for a, value in zip(x, row, strict=True)
    ]


def _edges(centres: Sequence[float], *, log: bool = False) -> list[float]:
    """Borders of cells, one more than centres: halfway between neighbours, on a logarithmic axis by ratio."""
    at = [math.log(v) if log else float(v) for v in centres]
    inner = [(a + b) / 2 for a, b in pairwise(at)]
    ends = [at[0] - (inner[0] - at[0]), *inner, at[-1] + (at[-1] - inner[-1])]
    return [short(math.exp(v) if log else v) for v in ends]
