"""The figure of lines over the training step: one run or several, one panel or two above each other.

One run: a colour for each metric. Several runs: a colour for each run, and a dash pattern for each metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pullback.charts.chart import (
    OVER_STEPS,
    PALETTE,
    REFERENCE_COLOUR,
    Figure,
    axis,
    base_layout,
    log_axis,
    step_axis,
    wants_log,
)
from pullback.charts.numbers import drawable, extremes, finite
from pullback.charts.text import plotly_text
from pullback.report.run.series import Look

DASHES = ("solid", "dash", "dot", "dashdot")
MOST_POINTS = 2000  # of a line
MOST_OF_ALL = 24_000  # of the lines of a chart together, but at least
FEWEST_POINTS = 120  # of each
GAP = 0.09
ROW = 12  # pixels that a name in the legend adds, of those beyond three
HEIGHTS = (300, 400, 520)  # of one panel, two and three


@dataclass(frozen=True)
class Metric:
    """A line to look for in a run: where it is stored and what to call it."""

    probe: str
    name: str
    label: str
    panel: int = 0
    reference: bool = False
    colour: str | None = None  # of what stands in several charts; else its place among the others


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
    steps: np.ndarray
    values: np.ndarray
    legend: bool = True
    width: float = 2
    count: int = 0  # of all its points, where those given are a selection
    look: Look | None = None  # of its run among several
    skipped: tuple[int, ...] = ()  # steps at which others were measured and this was not: no line leads over them

    def __post_init__(self) -> None:
        """Steps and values may be handed over as any sequence."""
        object.__setattr__(self, "steps", np.asarray(self.steps))
        object.__setattr__(self, "values", np.asarray(self.values, float))


def draw_lines(lines: Sequence[Line], panels: Sequence[Panel], several: bool) -> Figure:
    """The figure of some lines; panels stand above each other and share the step axis."""
    used = sorted({line.metric.panel for line in lines})
    metrics = {panel: list(dict.fromkeys(x.metric for x in lines if x.metric.panel == panel)) for panel in used}
    crowded = [metric for each in metrics.values() if len(each) > 1 for metric in each]
    scales = scales_of(lines, panels)
    data, seen = [], set()
    limit = most_points(len(lines))
    for line in lines:
        place = metrics[line.metric.panel].index(line.metric)
        drawn = trace(line, place, several, scales[line.metric.panel], limit)
        data.append(drawn | {"showlegend": line.legend and drawn["name"] not in seen})
        seen |= {drawn["name"]} if line.legend else set()
    if several:
        data += [dash_key(metric, place) for place, metric in enumerate(crowded)]
    layout = base_layout(HEIGHTS[len(used) - 1]) | {"hovermode": "x unified", "hoversubplots": "axis"} | OVER_STEPS
    layout["showlegend"] = several or bool(crowded)
    layout["height"] += ROW * max(0, sum(each["showlegend"] for each in data) - 3) if layout["showlegend"] else 0
    layout["xaxis"] = step_axis([end for x in lines for end in x.steps[[0, -1]].tolist()], anchor=axis_name(used[-1]))
    for row, panel in enumerate(reversed(used)):
        low, high = row / len(used), (row + 1) / len(used)
        domain = [low + (GAP / 2 if row > 0 else 0), high - (GAP / 2 if row < len(used) - 1 else 0)]
        layout["yaxis" + axis_name(panel)[1:]] = scales[panel] | {"domain": domain}
    return {"data": data, "layout": layout}


def scales_of(lines: Sequence[Line], panels: Sequence[Panel]) -> dict[int, Figure]:
    """The vertical axes of the panels that are used."""
    used = sorted({line.metric.panel for line in lines})
    return {p: value_axis(panels[p], np.concatenate([x.values for x in lines if x.metric.panel == p])) for p in used}


def axis_name(panel: int) -> str:
    """Plotly's name for the vertical axis of a panel: y for the first, y2 for the next."""
    return f"y{panel + 1}" if panel else "y"


def value_axis(panel: Panel, values: np.ndarray) -> Figure:
    """The vertical axis of a panel."""
    if panel.scale == "log" or (panel.scale == "auto" and wants_log(values)):
        return log_axis(panel.title, values)
    known = finite(values)
    flat = panel.percent and not known.any()  # shares are not below zero
    empty = {} if len(known) and not flat else {"range": [0, 1]}
    return axis(panel.title, **empty, **({"tickformat": ".3~%"} if panel.percent else {}))


def most_points(lines: int) -> int:
    """How many points a line may have among so many."""
    return max(FEWEST_POINTS, min(MOST_POINTS, MOST_OF_ALL // max(lines, 1)))


def trace(line: Line, place: int, several: bool, scale: Figure, limit: int) -> dict[str, Any]:
    """One line for Plotly. Markers show single points, where there are few or where gaps could hide them.

    What its axis cannot show is a gap; ``meta`` has all values, for a reader who asks for another axis.
    """
    steps, values = _with_gaps(line)
    kept = extremes(values, limit)
    known = [None if value is None else short(value) for value in drawable(values[kept].tolist())]
    drawn = within(known, scale)
    look = line.look or Look(line.run_name, PALETTE[line.run % len(PALETTE)], line.run)
    name = plotly_text(look.label if several else line.metric.label, 60 if several else 40)
    colour = look.colour if several else line.metric.colour or PALETTE[line.place % len(PALETTE)]
    dash = DASHES[place % len(DASHES)] if several else "solid"
    if line.metric.reference and not several:
        colour, dash = REFERENCE_COLOUR, "dash"
    whole = line.metric.reference and len(drawn) > 1  # a line that was drawn, not measured
    return {
        "type": "scatter",
        "mode": "lines" if None not in drawn and (len(drawn) > 24 or whole) else "lines+markers",
        "name": name,
        "legendgroup": name,
        "x": steps[kept].tolist(),
        "y": drawn,
        "yaxis": axis_name(line.metric.panel),
        "line": {"color": colour, "width": line.width, "dash": dash},
        "marker": {"size": 4.5},
        "hovertemplate": "%{y:.4~g}" + (f" {line.metric.label}" if several else ""),
        "meta": {"run": line.run} | ({"all": known} if known != drawn else {}),
    }


def _with_gaps(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, with a step that was skipped between two points as none."""
    if not line.skipped or len(line.steps) < 2:
        return line.steps, line.values
    steps, skipped = line.steps, np.append(np.sort(line.skipped), np.iinfo(np.int64).max)
    following = skipped[np.searchsorted(skipped, steps[:-1], side="right")]
    places = np.flatnonzero(following < steps[1:])
    return np.insert(steps, places + 1, following[places]), np.insert(line.values, places + 1, math.nan)


def short(value: float) -> float:
    """Seven digits: more than a drawing shows, and half the size on the page."""
    return float(f"{value:.7g}")


def within(values: Sequence[float | None], scale: Figure) -> list[float | None]:
    """What a logarithmic axis can show: what is above zero, and not below its end."""
    if scale.get("type") != "log":
        return list(values)
    least = 10 ** scale["range"][0]
    return [value if value is not None and value > least else None for value in values]


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
