"""Charts of what the loop showed at every step: its loss, its learning rate, the norm of its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pullback.advisor.rules.curvature import curvatures_of
from pullback.advisor.training_losses import training_losses
from pullback.charts.chart import PALETTE, Chart, Table
from pullback.charts.numbers import extremes
from pullback.report.run.line_charts import Spec, chart_of, label_of, line_of
from pullback.report.run.line_figure import MOST_POINTS, Line, Metric, Panel, most_points
from pullback.report.run.series import NamedRun, skipped_by
from pullback.report.run.step_rows import StepRows

MOST_GROUPS = 8  # of parameters, whose rates are drawn

# What stands in several charts has one colour in all of them.
MEASURED, OF_EPOCH, TEST, HELD_OUT = PALETTE[0], PALETTE[2], PALETTE[1], PALETTE[3]
STEPS = Metric("course", "loss", "every step", colour=PALETTE[5])
CONSTANT = Metric("constant", "loss", "one constant answer", reference=True)
LOSS = Spec(
    "loss",
    "Loss",
    "Lower is better; a held-out curve that turns up while the training curve still falls is a sign of overfitting.",
    (
        Metric("loss", "loss", "measured samples", colour=MEASURED),
        Metric("epoch", "train_loss", "training, mean of epoch", colour=OF_EPOCH),
        Metric("epoch", "test_loss", "test set", colour=TEST),
        Metric("test", "loss", "held out", colour=HELD_OUT),
    ),
    (Panel("mean loss per sample", "auto"),),
)
OF_EACH_RUN = ("every step", "test set", "held out")  # of several runs; of one without losses at every step, the first
RATE = Spec(
    "learning-rate",
    "Learning rate",
    "As the optimizer had it at every step; grey is the highest rate that the curvature bears, where it was measured.",
    (),
    (Panel("learning rate", "auto"),),
)
NORM = Spec(
    "gradient-norm",
    "Gradient norm that the optimizer was given",
    "Of all gradients together, after clipping, at the steps where it costs next to nothing. A leap is a batch or a "
    "rate that does not fit; a level line is a clip that cuts nearly every step; a line that falls to nothing is a "
    "training that stops.",
    (Metric("course", "gradient_norm", "gradient norm"),),
    (Panel("norm (loss / parameter)", "auto"),),
)


def loss_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """The loss of every step, and beside it what was measured, held-out losses, and that of one constant answer."""
    several = len(runs) > 1
    limit = most_points(len(runs) * (len(OF_EACH_RUN) if several else len(LOSS.metrics) + 1))
    lines = [line for index, named in enumerate(runs) for line in _losses(index, named, limit, several=several)]
    return _with_all(chart_of(LOSS, lines, several), runs, lines) if lines else None


def _losses(index: int, named: NamedRun, limit: int, *, several: bool) -> Iterator[Line]:
    course = _course(index, named, STEPS, limit)
    yield from course
    for place, metric in enumerate(LOSS.metrics, start=1):
        if several and metric.label not in OF_EACH_RUN and (course or place > 1):
            continue
        yield from line_of(index, named, place, metric)
    constant = None if several else training_losses(named.run).constant
    steps = np.concatenate([np.array(named.run.steps, np.int64), *(line.steps for line in course)])
    if constant is not None and math.isfinite(constant) and len(steps):
        ends = np.array([steps.min(), steps.max()])
        yield Line(index, named.name, len(LOSS.metrics) + 1, CONSTANT, ends, np.full(2, constant))


def learning_rate_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """The rates of all groups at every step, and what the curvature bears."""
    several = len(runs) > 1
    groups = MOST_GROUPS if not several else 1
    lines: list[Line] = []
    for index, named in enumerate(runs):
        for place in range(groups):
            name = "learning_rate" + (f".{place}" if place else "")
            label = f"group {place + 1}" if place else "learning rate"
            lines += _course(index, named, Metric("course", name, label), most_points(groups * len(runs)), place)
        bears = [] if several else [(c.step, c.stable_rate) for c in curvatures_of(named.run) if c.sharpness > 0]
        if bears and lines:
            metric = Metric("sharpness", "stable_rate", "what the curvature bears", reference=True)
            steps, rates = np.array([step for step, _ in bears]), np.array([rate for _, rate in bears])
            skipped = skipped_by(named.run, "sharpness", "learning_rate")
            lines.append(Line(index, named.name, groups, metric, steps, rates, look=named.look, skipped=skipped))
    return _with_all(chart_of(RATE, lines, several), runs, lines) if lines else None


def gradient_norm_chart(runs: Sequence[NamedRun]) -> Chart | None:
    """The norm as it was at the steps that were looked at."""
    limit = most_points(len(runs))
    lines = [line for k, named in enumerate(runs) for line in _course(k, named, NORM.metrics[0], limit)]
    return _with_all(chart_of(NORM, lines, len(runs) > 1), runs, lines) if lines else None


def _course(index: int, named: NamedRun, metric: Metric, limit: int, place: int = 0) -> list[Line]:
    """The line of what was shown at every step, of long runs its extremes; none of what never was."""
    steps, values = named.run.courses.of(metric.name)
    if not len(steps):
        return []
    kept = extremes(values, min(limit, MOST_POINTS))
    line = Line(index, named.name, place, metric, steps[kept], values[kept], width=1.4, look=named.look)
    return [replace(line, count=len(steps))]


def _with_all(chart: Chart, runs: Sequence[NamedRun], lines: Sequence[Line]) -> Chart:
    """The chart, whose data file has every step, where the page has a selection."""
    whole = any(line.count > len(line.steps) for line in lines)
    return replace(chart, data=partial(_every_step, chart, runs, lines)) if whole else chart


def _every_step(chart: Chart, runs: Sequence[NamedRun], lines: Sequence[Line]) -> Table:
    whole = [
        runs[line.run].run.courses.of(line.metric.name) if line.count > len(line.steps) else (line.steps, line.values)
        for line in lines
    ]
    return Table(chart.title, ("Step", *(label_of(line, len(runs) > 1) for line in lines)), StepRows(whole))
