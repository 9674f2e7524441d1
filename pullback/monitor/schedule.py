"""When to measure: every so many steps, and rarely for what is dear."""

from __future__ import annotations

from dataclasses import dataclass

from pullback._checks import input_error


@dataclass(frozen=True)
class Schedule:
    """Measures after every ``every``-th training step."""

    every: int

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise input_error("Schedule", "`every` as a whole number from 1", repr(self.every), "Pass steps")

    def is_due(self, step: int) -> bool:
        """Whether to measure after this step, counted from 1."""
        return step % self.every == 0


def is_sparse_turn(measurement: int) -> bool:
    """Whether a dear probe joins this measurement: the 1st, 2nd, 3rd, 4th, 6th, 8th, 12th, 16th and so on.

    Twice per doubling, so that the cost of n measurements grows with log n, and early training, where most
    happens, is seen best.
    """
    power = measurement & -measurement
    return measurement in (power, 3 * power)
