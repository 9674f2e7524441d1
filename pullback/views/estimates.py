"""Estimates and what iterations came to: values with their errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from pullback._results import Estimate, Solution
from pullback.charts.numbers import evenly
from pullback.charts.plots import Curve, curves
from pullback.charts.text import counted
from pullback.views.view import View, drawing

MOST_POINTS = 200


@drawing.register
def estimate_view(estimate: Estimate) -> View:
    """Every number with a bar of one standard error; of many an even selection."""
    values, errors = (_flat(each) for each in (estimate.value, estimate.stderr))
    kept = evenly(len(values), MOST_POINTS)
    some = f"; {len(kept)} of {len(values):,} are drawn" if len(kept) < len(values) else ""
    reading = f"Bars are one standard error to either side{some}."
    picked = [float(values[at]) for at in kept], [float(errors[at]) for at in kept]
    points = Curve("estimate", kept, picked[0], "points", stderr=picked[1])
    chart = curves("estimate", "Estimate", reading, [points], x="entry", y="value", summary=(str(estimate),))
    if len(values) == 1:
        chart.figure["layout"]["xaxis"] |= {"tickvals": [], "title": {"text": ""}}
    return View("Estimate", (str(estimate),), charts=(chart,) if len(values) else ())


@drawing.register
def solution_view(solution: Solution) -> View:
    """The residual after every iteration, where it was kept."""
    history = np.empty((0,)) if solution.history is None else _array(solution.history)
    facts = (
        str(solution),
        *([f"stopped where the curvature is {solution.curvature:.3g}"] if solution.curvature else []),
    )
    if not len(history):
        return View("Solution", facts)
    worst = history.reshape(len(history), -1).max(1)
    kept = evenly(len(worst), MOST_POINTS)
    line = Curve("residual", kept, [float(worst[at]) for at in kept], "line")
    reading = (
        f"Relative residual after {counted(len(worst) - 1, 'iteration')}; the largest of several right-hand sides."
    )
    chart = curves(
        "solution", "Residual", reading, [line], x="iteration", y="residual", log_y=True, summary=(str(solution),)
    )
    return View("Solution", facts, charts=(chart,))


def _array(values: Any) -> np.ndarray[Any, Any]:
    """A number, an array or a tensor of any device as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def _flat(values: Any) -> np.ndarray[Any, Any]:
    return _array(values).reshape(-1)
