"""How far the weights went, in units of their size: a step's share of it, and all steps together."""

from __future__ import annotations

import numpy as np

from pullback.advisor.reading import layers, not_finite, records_with
from pullback.advisor.rules.zeros import zero_layers
from pullback.advisor.severity import learns
from pullback.advisor.thresholds import FIRST_MEASUREMENT, HALF_TRAVELLED, LITTLE_WAY, MANY_LOSSES, MANY_SHARPNESS
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run
from pullback.runs.rows import Rows


def updates_of(run: Run) -> Rows:
    """Measured steps but the first, in which Adam moves every weight by the whole rate.

    None where layers of zero weights are left out: what is left, biases alone, is no size to compare a step with.
    """
    records = records_with(run, "updates", "median")
    return records.where((records.steps != FIRST_MEASUREMENT) & (not zero_layers(run)))


def way_of(updates: Rows, run: Run) -> float:
    """How far the weights went at most, in units of their size: a step's share times the steps."""
    return float(np.median(updates.numbers("median"))) * _end(run) if updates else 0.0


def _end(run: Run) -> int:
    """The last step at which anything was measured."""
    return max(run.steps[-1:], default=0)


def crawls(run: Run) -> bool:
    """Whether nothing is learnt, the loss never leapt, and all steps together are a small share of the weights.

    Of Adam's first steps the preconditioned curvature says nothing then: its second moments are those of one batch.
    Layers behind units that a rate far too high has killed stand still as well, but not all: outputs go on.
    """
    updates, losses = updates_of(run), training_losses(run)
    if len(updates) <= MANY_SHARPNESS or len(losses) < MANY_LOSSES or not_finite(run) or losses.leapt_at is not None:
        return False
    return way_of(updates, run) < LITTLE_WAY and _furthest(updates, run) < HALF_TRAVELLED and not learns(run)


def _furthest(updates: Rows, run: Run) -> float:
    """How far the weights of a layer went at most, as ``way_of`` does of all."""
    ratios = np.nan_to_num(layers(updates, "ratio")[1])
    return float(np.median(ratios, 0).max(initial=0.0)) * _end(run) if updates else 0.0
