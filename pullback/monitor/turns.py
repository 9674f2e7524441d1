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
        without: of measurements that were made, probes that were left out, and how often.
    """

    def __init__(self, schedule: Schedule, sparse: Iterable[str]) -> None:
        self.schedule, self.sparse = schedule, frozenset(sparse)
        self.budget = Budget(schedule.budget)
        self.left_out = self.fewer_samples = 0
        self.without: dict[str, int] = {}
        self._made = 0  # in their turn, without those that were asked for
        self._waiting: frozenset[str] = frozenset()  # dear probes that could not be afforded in their turn
        self.measured = self._before = self._left_at = 0  # the last step, the one before, and the last left out

    def go_on(self, run: Run, steps: int) -> None:
        """Take up what a run that is resumed after so many steps says of itself."""
        record = next(reversed(list(run.of("work"))), None)
        if record is None or len(record.values.get("counts", ())) != len(COUNTS):
            return
        self.measured = record.step
        self._made, self.left_out, self.fewer_samples, *passes = record.values["counts"]
        self.budget = Budget(self.budget.share, *passes)
        self._waiting = frozenset(record.values.get("put_off", ())) & self.sparse
        self.without = dict(record.values.get("without", {}))
        between = max(0, steps - record.step)  # steps of which nothing is known but their number
        self.budget.train(round(self.budget.training / max(1, self.budget.steps)), between)

    def state(self) -> dict[str, Any]:
        """What ``go_on`` takes up: ``counts``, named by ``COUNTS``, and probes that were put off or left out."""
        counts = [self._made, self.left_out, self.fewer_samples, *astuple(self.budget)[1:]]
        return {"counts": counts, "put_off": sorted(self._waiting), "without": dict(self.without)}

    def summary(self) -> dict[str, Any]:
        """What the record says of the schedule."""
        return {
            "left_out": self.left_out,
            "fewer_samples": self.fewer_samples,
            "put_off": sorted(self._waiting),
            "without": dict(self.without),
            "work": self.budget.work,
            "training_work": self.budget.training,
        }

    def allowed(
        self, step: int, available: int, passes: Callable[[int], float], least: float = 0.0, end: float = 0.0
    ) -> Allowed | None:
        """What a measurement that is due may take; None if it is to be left out.

        Args:
            step: at which it is due.
            available: samples there are.
            passes: that the probes which always run make of so many samples.
            least: that none can do without.
            end: that are kept for the last one.
        """
        turn = is_sparse_turn(self._made + 1)
        wanted = self._waiting | (self.sparse if turn else frozenset())
        if self.budget.share is None:
            return Allowed(wanted=wanted, extras=turn)
        settled = self.budget.settled
        left = max(0.0, self.budget.cheap_left()) / (1 + self.schedule.num_sure(step, settled))
        enough = available if step < settled else min(ENOUGH, available)
        most = self.budget.left() - end * (self.measured > 0)  # the start comes before the end
        if least > most or (left < passes(enough) and not self.schedule.must(step, self.measured)):
            return None
        return Allowed(left, self.budget.dear_left(), wanted, turn, most)

    def at_end(self, least: float = 0.0) -> Allowed | None:
        """What the measurement at the end may take; None if that is not even ``least``."""
        if self.budget.share is None:
            return Allowed(wanted=self._waiting)
        if least > self.budget.left():
            return None
        left = max(0.0, self.budget.cheap_left(end=True))
        return Allowed(left, self.budget.dear_left(), self._waiting, most=self.budget.left())

    def asked_for(self) -> Allowed:
        """What one may take that the user asks for."""
        return Allowed(wanted=self.sparse, extras=True)

    def begin(self, step: int) -> None:
        """A measurement starts, however it ends."""
        self.left_out -= self._left_at == step  # at the end, what was due at it
        self._before, self.measured = self.measured, step

    def leave_out(self, step: int) -> None:
        """Count a measurement that was due and is not made."""
        self.left_out += self._left_at != step
        self._left_at = step

    def spend_at_end(self, probes: Iterable[str], passes: float) -> None:
        """Count what the end had beside its measurement."""
        self._waiting -= frozenset(probes)
        self.budget.dear += passes

    def spend(self, plan: Plan, *, asked: bool = False, turn: bool = False) -> None:
        """Count a measurement that was made, or was begun and is left out."""
        if plan.is_left_out:
            step, self.measured = self.measured, self._before
            self.leave_out(step)
            self.budget.cheap += plan.cheap
            return
        self._made += turn
        for name in plan.without:
            self.without[name] = self.without.get(name, 0) + 1
        self._waiting = (self._waiting | frozenset(plan.waiting)) - frozenset(plan.dear)
        if asked:
            self.budget.asked += plan.cheap + plan.dearer
            return
        self.fewer_samples += plan.num_samples < plan.available
        self.budget.cheap += plan.cheap
        self.budget.dear += plan.dearer
