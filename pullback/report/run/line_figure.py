"""The figure of lines over the training step: one run or several, one panel or two above each other.

One run: a colour for each metric. Several runs: a colour for each run, and a dash pattern for each metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pullback.charts.chart import PALETTE, REFERENCE_COLOUR, Figure, axis, base_layout, log_axis, step_axis, wants_log
from pullback.charts.numbers import drawable, evenly, finite
from pullback.charts.text import plotly_text

DASHES = ("solid", "dash", "dot", "dashdot")
MOST_POINTS = 2000
GAP = 0.09


@dataclass(frozen=True)
class Metric:
    """A line to look for in a run: where it is stored and what to call it."""

    probe: str
    name: str
    label: str
    panel: int = 0
    reference: bool = False


@dataclass(frozen=True)
class Panel:
    """A vertical axis: its title, and whether it is logarithmic (``"auto"``: if the values are far apart)."""

    title: str
    scale: str = "linear"
    percent: bool = False


@dataclass(frozen=True)
class Line:
    """One line as drawn."""

    run: int
    run_name: str
    place: int
    metric: Metric
    steps: list[int]
    values: list[float]
    opacity: float = 1.0
    legend: bool = True


def draw_lines(lines: Sequence[Line], panels: Sequence[Panel], several: bool) -> Figure:
    """The figure of some lines; panels stand above each other and share the step axis."""
    used = sorted({line.metric.panel for line in lines})
    metrics = {panel: list(dict.fromkeys(x.metric for x in lines if x.metric.panel == panel)) for panel in used}
    crowded = [metric for each in metrics.values() if len(each) > 1 for metric in each]
    scales = {p: value_axis(panels[p], [v for x in lines if x.metric.panel == p for v in x.values]) for p in used}
    data, seen = [], set()
    for line in lines:
        place = metrics[line.metric.panel].index(line.metric)
        drawn = trace(line, place, several, is_log=scales[line.metric.panel].get("type") == "log")
        data.append(drawn | {"showlegend": line.legend and drawn["name"] not in seen})
        seen |= {drawn["name"]} if line.legend else set()
    if several:
        data += [dash_key(metric, place) for place, metric in enumerate(crowded)]
    layout = base_layout(300 if len(used) == 1 else 400) | {"hovermode": "x unified", "hoversubplots": "axis"}
    layout["showlegend"] = several or bool(crowded)
    layout["height"] += 12 * max(0, sum(each["showlegend"] for each in data) - 3) if layout["showlegend"] else 0
    layout["xaxis"] = step_axis([step for x in lines for step in x.steps], anchor=axis_name(used[-1]))
    for row, panel in enumerate(reversed(used)):
        low, high = row / len(used), (row + 1) / len(used)
        domain = [low + (GAP / 2 if row > 0 else 0), high - (GAP / 2 if row < len(used) - 1 else 0)]
        layout["yaxis" + axis_name(panel)[1:]] = scales[panel] | {"domain": domain}
    return {"data": data, "layout": layout}


def axis_name(panel: int) -> str:
    """Plotly's name for the vertical axis of a panel: y for the first, y2 for the next."""
    return f"y{panel + 1}" if panel else "y"


def value_axis(panel: Panel, values: Sequence[float]) -> Figure:
    """The vertical axis of a panel."""
    if panel.scale == "log" or (panel.scale == "auto" and wants_log(values)):
        return log_axis(panel.title, values)
    empty = {} if finite(values) else {"range": [0, 1]}
    return axis(panel.title, **empty, **({"tickformat": ".0%"} if panel.percent else {}))


def trace(line: Line, place: int, several: bool, is_log: bool) -> dict[str, Any]:
    """One line for Plotly. Markers show single points, where there are few or where gaps could hide them."""
    kept = evenly(len(line.values), MOST_POINTS)
    values = drawable([line.values[each] for each in kept], log=is_log)
    name = plotly_text(line.run_name if several else line.metric.label, 40)
    colour = PALETTE[(line.run if several else line.place) % len(PALETTE)]
    dash = DASHES[place % len(DASHES)] if several else "solid"
    if line.metric.reference and not several:
        colour, dash = REFERENCE_COLOUR, "dash"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(values) <= 24 or None in values else "lines",
        "name": name,
        "legendgroup": name,
        "x": [line.steps[each] for each in kept],
        "y": values,
        "yaxis": axis_name(line.metric.panel),
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": 4.5},
        "opacity": line.opacity,
        "hovertemplate": "%{y:.4~g}" + (f" {line.metric.label}" if several else ""),
    }


def dash_key(metric: Metric, place: int) -> dict[str, Any]:
    """An entry of the legend that tells which metric a dash pattern stands for; it draws nothing."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": metric.label,
        "x": [None],
        "y": [None],
        "line": {"color": REFERENCE_COLOUR, "width": 2, "dash": DASHES[place % len(DASHES)]},
        "showlegend": True,
        "hoverinfo": "skip",
    }
