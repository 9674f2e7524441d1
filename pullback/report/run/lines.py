"""Charts of lines over the training step: which numbers they show, and what is said about these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pullback.charts.chart import Cell, Chart, Table
from pullback.charts.text import counted, number, percent
from pullback.report.run.line_figure import MOST_POINTS, Line, Metric, Panel, draw_lines
from pullback.report.run.series import NamedRun, read_series


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
    lines = []
    for place, metric in enumerate(spec.metrics):
        for index, named in enumerate(runs):
            steps, values = read_series(named.run, metric.probe, metric.name)
            if steps:
                lines.append(Line(index, named.name, place, metric, steps, values))
    if not lines:
        return None
    several = len(runs) > 1
    summary = tuple(describe(line, several, spec.panels[line.metric.panel]) for line in lines)
    figure = draw_lines(lines, spec.panels, several)
    return Chart(spec.key, spec.title, spec.reading, summary, figure, (table_of(spec.title, lines, several),))


def describe(line: Line, several: bool, panel: Panel) -> str:
    """The line in one sentence: first and last value, extremes between them, and how many were not finite."""
    show = percent if panel.percent else number
    name = label_of(line, several)
    pairs = [(step, v) for step, v in zip(line.steps, line.values, strict=True) if math.isfinite(v)]
    missing = len(line.values) - len(pairs)
    if not pairs:
        return f"{name}: not a finite number at any of the {len(line.values)} measured steps."
    (first, start), (last, end) = pairs[0], pairs[-1]
    low, high = min(v for _, v in pairs), max(v for _, v in pairs)
    if low == high:
        text = f"{name}: {show(low)} at every step from {first:,} to {last:,}"
    else:
        text = f"{name}: {show(start)} at step {first:,}, {show(end)} at step {last:,}"
        for word, value in (("least", low), ("greatest", high)):
            if value not in (start, end):
                at = next(step for step, v in pairs if v == value)
                text += f"; {word} {show(value)} at step {at:,}"
    if missing:
        bad = next(step for step, v in zip(line.steps, line.values, strict=True) if not math.isfinite(v))
        text += f"; not drawn: {counted(missing, 'value')} NaN or infinite, the first at step {bad:,}"
    if panel.scale == "log" and low <= 0 < high:
        below = sum(v <= 0 for _, v in pairs)
        text += f"; not drawn: {counted(below, 'value')} at or below zero"
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
