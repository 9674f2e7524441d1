"""Rows of the thresholds of losses that grew and whose zero is not known."""

from __future__ import annotations

from collections.abc import Sequence

from pullback.runs import Run
from tests.advisor.runs import Row, a_run


def ramp(share: float, of: int = 2000) -> Run:
    """A loss of unknown zero that rises from 1 to 50 within this share of the steps, in their middle."""
    rise = round(share * of)
    before = (of - rise) // 2
    return a_run(
        loss=[1.0] * before + [1 + 49 * k / rise for k in range(rise)] + [50.0] * (of - rise - before), least=None
    )


def wild_at(place: int) -> Run:
    """A loss that is noise but for its first value, and steps of which one is long."""
    updates = [(2**k, "updates", {"median": 0.2 if k == place else 0.01}) for k in range(5)]
    return a_run(*updates, loss=[1.0, *[30.0, 70.0] * 60], least=None)


GROWTH: dict[str, Sequence[Row]] = {
    "EVEN_PARTS": (Row(ramp, 0.38, 0.42, "divergence"),),
    "STEEP": (Row(ramp, 0.38, 0.42, "divergence"),),
    "FEW_PARTS": (Row(lambda v: a_run(loss=[1.0] + [50.0] * (v - 1), least=None), 7, 6, "divergence"),),
    "FEW_UPDATES": (Row(wild_at, 2, 3, "divergence"),),
}
