"""Whether a step is measured and with how much: decided by steps, samples and passes, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import Any

from pullback.monitor.budget import Budget
from pullback.monitor.plan import ENOUGH, Allowed, Plan
from pullback.monitor.schedule import Schedule, is_sparse_turn
from pullback.runs import Run

COUNTS = ("made", "left_out", "fewer_samples", "training", "steps", "cheap", "dear", "asked")


class Turns:
    """What was measured so far, and what may be next.

    Args:
        schedule: when a measurement is due, and the share that measuring may take.
        sparse: names of the dear probes.

    Attributes:
        budget: passes made by training and by measuring.
        left_out: measurements that were due.
        fewer_samples: measurements with fewer samples than there were.
    """

    def __init__(self, schedule: Schedule, sparse: Iterable[str]) -> None:
        self.schedule, self.sparse = schedule, frozenset(sparse)
        self.budget = Budget(schedule.budget)
        self.left_out = self.fewer_samples = 0
        self._made = 0  # in their turn, without those that were asked for
        self._waiting: frozenset[str] = frozenset()  # dear probes that could not be afforded in their turn
        self.measured = 0  # the last step

    def go_on(self, run: Run, steps: int) -> None:
        """Take up what a run that is resumed after so many steps says of itself."""
        record = next(reversed(list(run.of("work"))), None)
        if record is None or len(record.values.get("counts", ())) != len(COUNTS):
            return
        self.measured = record.step
        self._made, self.left_out, self.fewer_samples, *passes = record.values["counts"]
        self.budget = Budget(self.budget.share, *passes)
        self._waiting = frozenset(record.values.get("put_off", ())) & self.sparse
        between = max(0, steps - record.step)  # steps of which nothing is known but their number
        self.budget.train(round(self.budget.training / max(1, self.budget.steps)), between)

    def state(self) -> dict[str, Any]:
        """What ``go_on`` takes up: ``counts``, named by ``COUNTS``, and dear probes that were put off."""
        counts = [self._made, self.left_out, self.fewer_samples, *astuple(self.budget)[1:]]
        return {"counts": counts, "put_off": sorted(self._waiting)}

    def summary(self) -> dict[str, Any]:
        """What the record says of the schedule."""
        return {
            "left_out": self.left_out,
            "fewer_samples": self.fewer_samples,
            "put_off": sorted(self._waiting),
            "work": self.budget.work,
            "training_work": self.budget.training,
        }

    def allowed(self, step: int, available: int, passes: Callable[[int], float]) -> Allowed | None:
        """What a measurement that is due may take; None if it is to be left out.

        Args:
            step: at which it is due.
            available: samples there are.
            passes: that the probes which always run make of so many samples.
        """
        turn = is_sparse_turn(self._made + 1)
        wanted = self._waiting | (self.sparse if turn else frozenset())
        if self.budget.share is None:
            return Allowed(wanted=wanted, extras=turn)
        settled = self.budget.settled
        left = max(0.0, self.budget.cheap_left()) / (1 + self.schedule.num_sure(step, settled))
        enough = available if step < settled else min(ENOUGH, available)
        if not self.schedule.must(step, self.measured) and left < passes(enough):
            return None
        return Allowed(left, self.budget.dear_left(), wanted, turn)

    def at_end(self) -> Allowed:
        """What the measurement at the end may take."""
        if self.budget.share is None:
            return Allowed(wanted=self._waiting)
        return Allowed(max(0.0, self.budget.cheap_left(end=True)), self.budget.dear_left(), self._waiting)

    def asked_for(self) -> Allowed:
        """What one may take that the user asks for."""
        return Allowed(wanted=self.sparse, extras=True)

    def begin(self, step: int) -> None:
        """A measurement starts, however it ends."""
        self.measured = step

    def spend(self, plan: Plan, *, asked: bool = False, turn: bool = False) -> None:
        """Count a measurement that was made."""
        self._made += turn
        self._waiting = (self._waiting | frozenset(plan.waiting)) - frozenset(plan.dear)
        if asked:
            self.budget.asked += plan.cheap + plan.dearer
            return
        self.fewer_samples += plan.num_samples < plan.available
        self.budget.cheap += plan.cheap
        self.budget.dear += plan.dearer
