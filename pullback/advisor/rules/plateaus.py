"""A loss that stands still: at a saddle, where there is a way down, or at a minimum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.course import stands
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, least_loss, number, records_with
from pullback.advisor.severity import severity
from pullback.advisor.thresholds import NEGATIVE, PLATEAU, PLATEAU_CHANGES, PLATEAU_LOSSES
from pullback.runs import Record, Run
from pullback.runs.rows import Rows


def saddle_plateau(run: Run) -> Iterator[Finding]:
    """The loss stands still, and the Hessian has a direction of negative curvature."""
    yield from _plateau(run, saddle=True)


def minimum_plateau(run: Run) -> Iterator[Finding]:
    """The loss stands still, and the Hessian has no direction of negative curvature."""
    yield from _plateau(run, saddle=False)


def _plateau(run: Run, *, saddle: bool) -> Iterator[Finding]:
    late = _standing(run)
    known = records_with(run, "sharpness", "smallest", "hessian")
    known = known.where(known.steps >= late[0].step) if late else known[:0]
    if not known or (direction := _is_saddle(known[-1])) is None or direction != saddle:
        return
    values = known[-1].values
    yield Finding(
        "saddle-plateau" if saddle else "minimum-plateau",
        severity(run),
        None,
        (late[0].step, late[-1].step),
        {
            "loss": float(np.median(late.numbers("loss"))),
            "smallest curvature": values["smallest"],
            "largest curvature": values["hessian"],
        },
        f"median loss of the last two quarters within {_within(run)}, and a smallest Hessian eigenvalue "
        f"{'below' if saddle else 'not below'} -{NEGATIVE:g} of the largest",
        "strict saddle points, Dauphin et al. (2014), arXiv:1406.2572; " + CONVENTION,
        "Raise the learning rate or add momentum, or use smaller batches: noise leaves a saddle"
        if saddle
        else "Stop here, lower the learning rate if the loss is noisy, or use a larger or better initialised model",
        summary="The loss stands still at a saddle: there is a way down, and noise or momentum would find it."
        if saddle
        else "The loss stands still, and no direction leads further down.",
    )


def _standing(run: Run) -> Rows:
    """Loss records of the last two quarters if their medians agree, else nothing."""
    records = records_with(run, "loss", "loss")
    if len(records) < PLATEAU_LOSSES or not stands(records.numbers("loss"), least_loss(run)):
        return records[:0]
    return records[-2 * (len(records) // 4) :]


def _within(run: Run) -> str:
    if least_loss(run) is not None:
        return f"{PLATEAU:.0%}"
    return f"{PLATEAU:.0%} of what it fell, or {PLATEAU_CHANGES:g} of its changes between measurements"


def _is_saddle(record: Record) -> bool | None:
    """None where the eigenvalue's own error leaves its sign open."""
    smallest, largest = record.values["smallest"], abs(record.values["hessian"])
    error = number(record.values.get("smallest_residual", 0.0))
    if smallest + error < -NEGATIVE * largest:
        return True
    # a Ritz value lies above the smallest eigenvalue: only a small residual says that nothing lies below
    return False if smallest - error >= -NEGATIVE * largest else None
