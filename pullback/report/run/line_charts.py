"""Charts of lines over the training step: which numbers they show, and what is said about these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pullback.charts.chart import Chart, Figure, Table
from pullback.charts.text import counted, number, percent
from pullback.report.run.line_figure import (
    HEIGHTS,
    MOST_POINTS,
    ROW,
    Line,
    Metric,
    Panel,
    draw_lines,
    most_points,
    scales_of,
)
from pullback.report.run.series import NamedRun, read_series, skipped_by
from pullback.report.run.step_rows import StepRows

MOST_NAMED = 12  # settings that a legend names
COLOURS = "Colours are those of the settings in the table at the top."


@dataclass(frozen=True)
class Spec:
    """All that distinguishes one chart of lines from the next."""

    key: str
    title: str
    reading: str
    metrics: tuple[Metric, ...]
    panels: tuple[Panel, ...]


def line_chart(spec: Spec, runs: Sequence[NamedRun]) -> Chart | None:
    """The chart of a spec, or None if no run holds any of its metrics."""
    lines = [line for place, metric in enumerate(spec.metrics) for line in _lines_of(metric, place, runs)]
    return chart_of(spec, lines, len(runs) > 1) if lines else None


def _lines_of(metric: Metric, place: int, runs: Sequence[NamedRun]) -> Iterator[Line]:
    for index, named in enumerate(runs):
        yield from line_of(index, named, place, metric)


def line_of(index: int, named: NamedRun, place: int, metric: Metric) -> Iterator[Line]:
    """A metric of a run as a line; none where the run has no number of it."""
    steps, values = read_series(named.run, metric.probe, metric.name)
    if len(steps):
        skipped = skipped_by(named.run, metric.probe, metric.name)
        yield Line(index, named.name, place, metric, steps, values, look=named.look, skipped=skipped)


def chart_of(spec: Spec, lines: Sequence[Line], several: bool) -> Chart:
    """The chart of these lines: drawn, in words and as a table."""
    limit, scales = most_points(len(lines)), scales_of(lines, spec.panels)
    summary = tuple(describe(x, several, spec.panels[x.metric.panel], scales[x.metric.panel], limit) for x in lines)
    figure = draw_lines(lines, spec.panels, several)
    table = replace(table_of(spec.title, lines, several), drawn=True)
    return Chart(spec.key, spec.title, spec.reading, summary, figure, (table,))


def describe(line: Line, several: bool, panel: Panel, scale: Figure | None = None, limit: int = MOST_POINTS) -> str:
    """The line in one sentence: first and last value, extremes between them, and what is not drawn of it."""
    show = percent if panel.percent else number
    name = label_of(line, several)
    known = np.isfinite(line.values)
    steps, values = line.steps[known], line.values[known]
    missing = len(line.values) - len(values)
    if not len(values):
        return f"{name}: not a finite number at any of the {len(line.values)} measured steps."
    (first, last), (start, end) = steps[[0, -1]].tolist(), values[[0, -1]].tolist()
    low, high = float(values.min()), float(values.max())
    if first == last:
        text = f"{name}: {show(low)} at step {first:,}"
    elif low == high:
        text = f"{name}: {show(low)} at every step from {first:,} to {last:,}"
    else:
        text = f"{name}: {show(start)} at step {first:,}, {show(end)} at step {last:,}"
        for word, value in (("least", low), ("greatest", high)):
            if value not in (start, end):
                text += f"; {word} {show(value)} at step {int(steps[np.argmax(values == value)]):,}"
    if missing:
        bad = int(line.steps[np.argmin(known)])
        text += f"; not drawn: {counted(missing, 'value')} NaN or infinite, the first at step {bad:,}"
    return text + _left_out(values, scale or {}) + _thinned(line, limit) + "."


def _left_out(values: np.ndarray, scale: Figure) -> str:
    """Numbers that a logarithmic axis cannot show, or ends above."""
    if scale.get("type") != "log":
        return ""
    below = int((values <= 0).sum())
    far = int(((values > 0) & (values <= 10 ** scale["range"][0])).sum())
    told = [f"{counted(below, 'value')} at or below zero"] * (below > 0)
    told += [f"{counted(far, 'value')} below the end of the axis"] * (far > 0)
    return f"; not drawn: {' and '.join(told)}" if told else ""


def _thinned(line: Line, limit: int) -> str:
    count = line.count or len(line.values)
    return f"; of {count:,} points those are drawn that are extremes of their stretch" if count > limit else ""


def label_of(line: Line, several: bool) -> str:
    """Name of a line in sentences and tables."""
    return f"{line.run_name}: {line.metric.label}" if several else line.metric.label


def table_of(caption: str, lines: Sequence[Line], several: bool) -> Table:
    """The values of all lines, a row for each step."""
    rows = StepRows([(line.steps, line.values) for line in lines])
    return Table(caption, ("Step", *(label_of(line, several) for line in lines)), rows)


def unnamed(chart: Chart, runs: Sequence[NamedRun]) -> Chart:
    """The chart without a legend of settings, where these are so many that it would take the room of the lines."""
    if len({named.look.group for named in runs if named.look}) <= MOST_NAMED:
        return chart
    data = [trace | ({} if trace["x"] == [None] else {"showlegend": False}) for trace in chart.figure["data"]]
    hidden = sum(old.get("showlegend", True) for old in chart.figure["data"])
    keys = sum(each.get("showlegend", True) for each in data)
    if keys == hidden:
        return chart
    layout = chart.figure["layout"]
    height = layout["height"] - ROW * (max(0, hidden - 3) - max(0, keys - 3))
    layout = layout | {"showlegend": keys > 0, "height": max(height, HEIGHTS[0]), "hovermode": "closest"}
    return replace(chart, figure=chart.figure | {"data": data, "layout": layout}, reading=f"{chart.reading} {COLOURS}")
