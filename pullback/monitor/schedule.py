"""When a measurement is due, and when none may be left out any more; rarely for what is dear."""

from __future__ import annotations

from dataclasses import dataclass

from pullback._checks import input_error

BUDGET = 0.05  # share of the training's passes
FIFTH = 5  # of the steps so far, which no gap is to exceed


@dataclass(frozen=True)
class Schedule:
    """Due after steps 1, 2, 4, 8 and so on below ``every``, and after every multiple of it.

    Without a budget only the multiples are due, and all of them are measured.

    Args:
        every: steps between later measurements.
        budget: the share of the training's work, in forward-and-backward passes of samples, that measuring may take;
            see ``budget.Budget``. None for no limit.

    Example:
        >>> [step for step in range(1, 61) if Schedule(20, budget=0.05).is_due(step)]
        [1, 2, 4, 8, 16, 20, 40, 60]
        >>> [step for step in range(1, 61) if Schedule(20).is_due(step)]
        [20, 40, 60]
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
        if last is None or last == step - 1:
            return step % self.every == 0 or (step & (step - 1) == 0 and 0 < step <= self._early)
        return self._passed(step) > self._passed(last)

    def _passed(self, step: int) -> int:
        """How many measurements are due up to a step."""
        return min(step, self._early).bit_length() + step // self.every

    @property
    def _early(self) -> int:
        """The last step at which powers of two are due."""
        return 0 if self.budget is None else self.every - 1

    def following(self, step: int) -> int:
        """The next step after which one is due."""
        power = 1 << step.bit_length()
        return power if power <= self._early else (step // self.every + 1) * self.every

    def longest_gap(self, measured: int) -> int:
        """Steps that may pass after a measurement until the next: ``every``, later a fifth of those made."""
        return max(self.every, measured // FIFTH)

    def must(self, step: int, measured: int) -> bool:
        """Whether leaving out the one due at ``step`` would make the gap since the last too long.

        Args:
            step: at which one is due.
            measured: the last step that was measured, 0 for none.
        """
        return step < self.every or self.following(step) - measured > self.longest_gap(measured)

    def num_sure(self, step: int, until: int) -> int:
        """How many measurements cannot be left out after ``step``, up to the step ``until``."""
        count = 0
        while (step := self._next_sure(step)) <= until:
            count += 1
        return count

    def _next_sure(self, measured: int) -> int:
        following = self.following(measured)
        if following < self.every:
            return following
        return max(following, (measured + self.longest_gap(measured)) // self.every * self.every)


def is_sparse_turn(measurement: int) -> bool:
    """Whether a dear probe's turn comes with this measurement: the 1st, 8th, 64th and so on.

    So the cost of n measurements grows with log n, and early training, where most happens, is seen best.
    """
    return measurement & (measurement - 1) == 0 and measurement.bit_length() % 3 == 1


def chosen_budget(budget: float | str | None) -> float | None:
    """The budget asked for, or with "auto" the one that is usual."""
    if budget == "auto":
        return BUDGET
    if isinstance(budget, str):
        raise input_error("Schedule", '`budget` as a share, "auto" or None', repr(budget), "Pass a share, 0.05 say")
    return budget
