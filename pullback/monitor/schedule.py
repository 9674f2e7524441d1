"""When to measure: every so many steps, and rarely for what is dear."""

from __future__ import annotations

from dataclasses import dataclass

from pullback._checks import input_error

BUDGETS = {"light": 0.001}  # by preset, so that it stays below a percent with the sure ones
BUDGET = 0.015  # of all else
SURE_MEASUREMENTS = 5  # these are made whatever they cost; the budget governs those after


@dataclass(frozen=True)
class Schedule:
    """Measures after every ``every``-th training step, as long as the budget allows.

    Args:
        every: steps between measurements.
        budget: the cost of a measurement, as the last of its kind took, must be at most this share of the wall time
            since the measurement before it; None measures whenever it is due. The first ``SURE_MEASUREMENTS`` are
            made in any case, so that short runs are seen too.
    """

    every: int
    budget: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise input_error("Schedule", "`every` as a whole number from 1", repr(self.every), "Pass steps")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise input_error("Schedule", "`budget` above 0 and at most 1", repr(self.budget), "Pass a share, or None")

    def is_due(self, step: int, last: int | None = None) -> bool:
        """Whether to measure after this step, counted from 1, if the budget allows.

        Where steps are counted by others, who may leave numbers out, ``last`` is the number before this one.
        """
        return step // self.every > (step - 1 if last is None else last) // self.every

    def is_affordable(self, measurements: int, expected: float, unwatched: float) -> bool:
        """Whether a measurement of the expected cost is a small enough share of the unwatched time before it."""
        if self.budget is None or measurements < SURE_MEASUREMENTS:
            return True
        return expected <= self.budget * unwatched


def is_sparse_turn(measurement: int) -> bool:
    """Whether a dear probe joins this measurement: the 1st, 8th, 64th and so on.

    So the cost of n measurements grows with log n, and early training, where most happens, is seen best.
    """
    return measurement & (measurement - 1) == 0 and measurement.bit_length() % 3 == 1


def chosen_budget(budget: float | str | None, probes: object) -> float | None:
    """The budget asked for, or with "auto" that of the preset."""
    if budget == "auto":
        return BUDGETS.get(probes, BUDGET) if isinstance(probes, str) else BUDGET
    if isinstance(budget, str):
        raise input_error("Schedule", '`budget` as a share, "auto" or None', repr(budget), "Pass a share, 0.05 say")
    return budget
