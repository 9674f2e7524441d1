"""The charts of ``pullback dynamics``: trajectories over a function, and lines of theory with points of simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pullback.charts.chart import PALETTE, Chart
from pullback.charts.maps import heat_map
from pullback.charts.plots import Curve

FOUND = "simulation"
SHORTEST, LONGEST = -6.0, 6.0  # decades of the map
Path = tuple[Sequence[float], Sequence[float]]
Reach = tuple[float, float]


def landscape_chart(
    x: Sequence[float],
    y: Sequence[float],
    z: Sequence[Sequence[float]],
    paths: Mapping[str, Path],
    minimisers: Sequence[Sequence[float]],
    axes: tuple[str, str] = ("x₁", "x₂"),
) -> Chart:
    """Trajectories over the contours of a function, coloured by decades above its least value on the map.

    Args:
        x: columns, (W,).
        y: rows, (H,).
        z: values, (H, W).
        paths: places along each trajectory, by name.
        minimisers: to mark.
        axes: their titles.
    """
    known = [value for row in z for value in row if math.isfinite(value)]
    least, most = min(known), max(known)
    floor = max(10**SHORTEST, (most - least) * 10**-LONGEST)
    heights, unit, colours = z, "f", "values"
    if minimisers:  # else the least value is where the map ends, and no place of its own
        heights, unit = [[math.log10(max(value - least, floor)) for value in row] for row in z], "log₁₀ f - least"
        colours = "decades above the least value on the map, white points minima"
    bounds = (min(map(min, heights)), max(map(max, heights)))
    drawn = []
    for place, (name, (across, up)) in enumerate(paths.items()):
        inside = _inside(across, up, (x[0], x[-1]), (y[0], y[-1]))
        style, colour = "points" if name == FOUND else "plain", colour_of(place)
        drawn.append(Curve(name, [across[k] for k in range(inside)], [up[k] for k in range(inside)], style, colour))
        drawn.append(Curve(f"{name}, its start", across[:1], up[:1], "points", colour, legend=False))
    if minimisers:
        low = [[p[place] for p in minimisers] for place in (0, 1)]
        drawn.append(Curve("minima", low[0], low[1], "points", "#ffffff", legend=False))
    reading = f"Colour and contours: {colours}. A trajectory that leaves the map ends there."
    chart = heat_map(
        "landscape", "Trajectories", reading, (axes[0], x), (axes[1], y), (unit, heights),
        bounds=bounds, drawn=drawn, summary=(f"From one start: {', '.join(paths)}.",),
    )  # fmt: skip
    lines = {
        "type": "contour", "x": list(x), "y": list(y), "z": heights, "showscale": False, "hoverinfo": "skip",
        "contours": {"coloring": "none", "start": bounds[0], "end": bounds[1], "size": (bounds[1] - bounds[0]) / 12},
        "line": {"width": 0.7, "color": "rgba(255,255,255,0.55)"}, "ncontours": 12, "showlegend": False,
    }  # fmt: skip
    chart.figure["data"].insert(1, lines)
    return chart


def colour_of(place: int) -> str:
    """Of the trajectory at this place, on the map and beside it."""
    return PALETTE[(place + 1) % len(PALETTE)]


def _inside(across: Sequence[float], up: Sequence[float], width: Reach, height: Reach) -> int:
    """How many places of a path come before it leaves the map."""
    for place, (a, b) in enumerate(zip(across, up, strict=True)):
        if not (width[0] <= a <= width[1] and height[0] <= b <= height[1]):
            return max(place, 1)
    return len(across)
