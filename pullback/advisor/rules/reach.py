"""Targets that the outputs cannot reach: an activation at the end of a model that is to predict numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, records_with, span
from pullback.advisor.severity import falls_short
from pullback.advisor.thresholds import CUT_OFF, FEW_RATIOS
from pullback.runs import Run


def outputs_cut_off(run: Run) -> Iterator[Finding]:
    """Outputs that are never below 0, and exactly 0 where targets are: a unit that is off has no gradient."""
    records = records_with(run, "loss", "cut_off")
    every = records_with(run, "loss", "loss")
    shares = records.numbers("cut_off")
    if len(records) < FEW_RATIOS or len(records) < len(every) or not np.median(shares) > CUT_OFF:
        return
    share = float(np.median(shares))
    yield Finding(
        "dead-units",
        "warning" if falls_short(run) else "info",
        None,
        span(records),
        {"share of outputs that are 0, of targets below": share},
        f"no output below 0 in any measurement, and more than {CUT_OFF:g} of the outputs exactly 0 beside a target "
        "below 0, as the median of the measurements",
        "definition of the ReLU; " + CONVENTION,
        "Take the activation behind the last layer out",
        summary="The outputs end in a ReLU, or what acts as one: targets below 0 are out of reach, and where an output "
        "is 0 no gradient passes.",
        change=Change("activation", "identity"),
    )
