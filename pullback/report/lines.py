"""Charts of lines over the training step: one run or several, one panel or two above each other.

One run: a colour for each metric. Several runs: a colour for each run, and a dash pattern for each metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pullback.report.chart import (
    PALETTE,
    REFERENCE_COLOUR,
    Cell,
    Chart,
    Figure,
    Table,
    axis,
    base_layout,
    log_axis,
    step_axis,
    wants_log,
)
from pullback.report.series import NamedRun, drawable, evenly, read_series
from pullback.report.text import number, percent, plotly_text

DASHES = ("solid", "dash", "dot", "dashdot")
MOST_POINTS = 2000


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
class Spec:
    """All that distinguishes one chart of lines from the next."""

    key: str
    title: str
    reading: str
    metrics: tuple[Metric, ...]
    panels: tuple[Panel, ...]


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


def line_chart(spec: Spec, runs: Sequence[NamedRun]) -> Chart | None:
    """The chart of a spec, or None if no run holds any of its metrics."""
    lines = []
    for place, metric in enumerate(spec.metrics):
        for index, named in enumerate(runs):
            steps, values = read_series(named.run, metric.probe, metric.name)
            if steps:
                lines.append(Line(index, named.name, place, metric, steps, values))
    if not lines:
        return None
    several = len(runs) > 1
    summary = " ".join(describe(line, several, spec.panels[line.metric.panel].percent) for line in lines)
    figure = draw_lines(lines, spec.panels, several)
    return Chart(spec.key, spec.title, spec.reading, summary, figure, (table_of(spec.title, lines, several),))


def describe(line: Line, several: bool, as_percent: bool = False) -> str:
    """The line in one sentence: first, last, least and greatest value, and how many were not finite."""
    show = percent if as_percent else number
    name = label_of(line, several)
    pairs = [(step, v) for step, v in zip(line.steps, line.values, strict=True) if math.isfinite(v)]
    missing = len(line.values) - len(pairs)
    if not pairs:
        return f"{name}: not a finite number at any of the {len(line.values)} measured steps."
    (first, start), (last, end) = pairs[0], pairs[-1]
    if len(pairs) == 1:
        text = f"{name}: {show(start)} at step {first:,}, the only finite measurement"
    else:
        low, high = min(pairs, key=lambda pair: pair[1]), max(pairs, key=lambda pair: pair[1])
        text = (
            f"{name}: {show(start)} at step {first:,}, {show(end)} at step {last:,}, "
            f"least {show(low[1])} (step {low[0]:,}), greatest {show(high[1])} (step {high[0]:,})"
        )
    if missing:
        bad = next(step for step, v in zip(line.steps, line.values, strict=True) if not math.isfinite(v))
        text += f"; {missing} values, the first at step {bad:,}, are NaN or infinite and not drawn"
    if len(pairs) > MOST_POINTS:
        text += f"; {MOST_POINTS} of {len(pairs):,} points are drawn"
    return text + "."


def label_of(line: Line, several: bool) -> str:
    """Name of a line in sentences and tables."""
    return f"{line.run_name}: {line.metric.label}" if several else line.metric.label


def table_of(caption: str, lines: Sequence[Line], several: bool) -> Table:
    """The values of all lines, a row for each step."""
    columns = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    steps = sorted({step for line in lines for step in line.steps})
    rows: list[list[Cell]] = [[step, *(column.get(step) for column in columns)] for step in steps]
    return Table(caption, ("Step", *(label_of(line, several) for line in lines)), rows)


def draw_lines(lines: Sequence[Line], panels: Sequence[Panel], several: bool) -> Figure:
    """The figure of some lines; panels stand above each other and share the step axis."""
    used = sorted({line.metric.panel for line in lines})
    shared = any(len({line.metric for line in lines if line.metric.panel == panel}) > 1 for panel in used)
    entries = len({legend_name(line, several, shared) for line in lines if line.legend})
    height = (300 if len(used) == 1 else 380) + (14 * entries if entries > 2 else 0)
    bottom = f"y{used[-1] + 1 if used[-1] else ''}"
    layout = base_layout(height) | {"hovermode": "x unified", "hoversubplots": "axis"}
    layout["xaxis"] = step_axis([step for line in lines for step in line.steps], anchor=bottom)
    scales = {}
    for row, panel in enumerate(used):
        values = [value for line in lines if line.metric.panel == panel for value in line.values]
        share = 1 / len(used)
        domain = [1 - (row + 1) * share + (0.06 if row < len(used) - 1 else 0), 1 - row * share]
        scales[panel] = value_axis(panels[panel], values)
        layout[f"yaxis{panel + 1 if panel else ''}"] = scales[panel] | {"domain": domain}
    layout["showlegend"] = several or shared
    seen: set[str] = set()
    data = []
    for line in lines:
        name = legend_name(line, several, shared)
        is_log = scales[line.metric.panel].get("type") == "log"
        data.append(trace(line, name, several, is_log) | {"showlegend": line.legend and name not in seen})
        seen |= {name} if line.legend else set()
    return {"data": data, "layout": layout}


def value_axis(panel: Panel, values: Sequence[float]) -> Figure:
    """The vertical axis of a panel."""
    if panel.scale == "log" or (panel.scale == "auto" and wants_log(values)):
        return log_axis(panel.title, values)
    return axis(panel.title, tickformat=".0%") if panel.percent else axis(panel.title)


def legend_name(line: Line, several: bool, shared: bool) -> str:
    """What the legend calls a line: the run, the metric, or both, as far as needed to tell lines apart."""
    if not several:
        return line.metric.label
    return f"{line.run_name} · {line.metric.label}" if shared else line.run_name


def trace(line: Line, name: str, several: bool, is_log: bool) -> dict[str, Any]:
    """One line for Plotly. Markers are drawn where there are few points, or where gaps could hide single ones."""
    kept = evenly(len(line.values), MOST_POINTS)
    values = drawable([line.values[place] for place in kept], log=is_log)
    colour = PALETTE[(line.run if several else line.place) % len(PALETTE)]
    dash = DASHES[line.place % len(DASHES)] if several else "solid"
    if line.metric.reference:
        colour, dash = (colour, "dot") if several else (REFERENCE_COLOUR, "dash")
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(values) <= 24 or None in values else "lines",
        "name": plotly_text(name, 44),
        "legendgroup": plotly_text(name, 44),
        "x": [line.steps[place] for place in kept],
        "y": values,
        "yaxis": f"y{line.metric.panel + 1 if line.metric.panel else ''}",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": 4.5},
        "opacity": line.opacity,
        "hovertemplate": "%{y:.4~g} " + (line.metric.label if several else ""),
    }
