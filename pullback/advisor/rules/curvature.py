"""The largest curvature of the loss, and the largest that the optimizer bears at its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pullback.advisor.change import Change
from pullback.advisor.model import is_batch_normed
from pullback.advisor.reading import once_a_run, rows
from pullback.advisor.thresholds import FIRST_STEPS, LOWEST_FACTOR, SHARE_OF_LIMIT
from pullback.runs import Run
from pullback.runs.rows import Rows

STABILITY = (
    "stability of gradient descent on a quadratic: 2 / lr, with momentum (2 + 2 m) / lr; Cohen et al. (2021), "
    "arXiv:2103.00065; Adam: Cohen et al. (2022), arXiv:2207.14484"
)


@dataclass(frozen=True)
class Curvature:
    """Largest curvature at a step, as the optimiser sees it, and the largest it can bear at its learning rate."""

    step: int
    sharpness: float
    limit: float
    rate: float  # NaN where it is not known
    at_start: bool  # of Adam's first steps, whose second moments are those of a batch or two
    records: Rows
    place: int  # of its own among these

    @property
    def stable_rate(self) -> float:
        """The learning rate whose limit is this sharpness: both limits are a constant over the rate."""
        return (self.rate * self.limit if math.isfinite(self.rate) else 2.0) / self.sharpness

    @property
    def which(self) -> str:
        """The rate to change; of several groups the one whose steps are longest for what it bears."""
        rates = self.records[self.place].values.get("learning_rates")
        several = isinstance(rates, list) and len(rates) > 1
        return f"learning rate of {self.rate:.3g}, and the others with it," if several else "learning rate"


@once_a_run
def curvatures_of(run: Run) -> list[Curvature]:
    """Adam's kin and unequal groups by the preconditioned Hessian, other gradient descent by the plain one.

    Other optimisers have no known limit. Of a loop that sums its losses, what is measured is of the sum. Of the first
    steps of a model with batch norm nothing is known: in eval mode, in which it is measured, its statistics are still
    those it was made with.
    """
    records = rows(run, "sharpness")
    own, plain = (
        np.array([records.numbers(name) for name in names])
        for names in (("preconditioned", "preconditioned_limit"), ("hessian", "limit"))
    )
    is_own = np.isfinite(own).all(0)
    is_known = is_own | (np.isfinite(plain).all(0) & (records.mapped("optimizer", _is_plain) > 0))
    early = records.steps < FIRST_STEPS
    if is_batch_normed(run):
        is_known &= ~early
    sharpness, limits = np.where(is_own, own, plain)
    columns = (
        records.steps,
        sharpness,
        limits,
        records.numbers("learning_rate"),
        early & records.has("preconditioned"),
    )
    known = zip(np.flatnonzero(is_known).tolist(), *(column[is_known].tolist() for column in columns), strict=True)
    return [
        Curvature(step, size, limit, rate, at_start, records, place)
        for place, step, size, limit, rate, at_start in known
    ]


def _is_plain(optimizer: object) -> bool:
    return optimizer == "SGD"


def lower(room: float) -> Change:
    """A rate at a quarter of the limit, which is ``room`` times the present one; at least ten times lower."""
    return Change("learning_rate", max(LOWEST_FACTOR, min(0.1, SHARE_OF_LIMIT * room)))
