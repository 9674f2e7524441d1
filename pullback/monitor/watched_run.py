"""One run as it is watched: every step goes into its course, some are measured, the end is told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pullback.functional.batch import Batch
from pullback.monitor.alarms import Alarms
from pullback.monitor.findings import Findings, OnFinding
from pullback.monitor.handed import as_number
from pullback.monitor.measuring import HandedOver, Measurer
from pullback.monitor.output import Output
from pullback.monitor.plan import LEAST, Allowed
from pullback.monitor.schedule import Schedule
from pullback.monitor.seen_targets import SeenTargets
from pullback.monitor.snapshot import Snapshot
from pullback.monitor.steps import Steps
from pullback.monitor.turns import Turns
from pullback.runs.schema import in_words


class Watch:
    """What a ``Monitor`` does on the process that records.

    Args:
        measurer: the probes.
        schedule: when they run.
        output: of the run; where that goes on, its earlier part is taken up.
        steps: made before.
        on_finding: called with each new finding, or None.

    Attributes:
        num_measurements: made, with those of a run that is continued.
        seconds: taken by them. Told, and nothing hangs on it.
    """

    def __init__(
        self, measurer: Measurer, schedule: Schedule, output: Output, steps: int, on_finding: OnFinding | None
    ) -> None:
        self.measurer, self.output, self._begun = measurer, output, steps
        self.turns = Turns(schedule, (probe.name for probe in measurer.probes if probe.sparse))
        self._keeps_batches = "labels" in measurer.names()
        self._alarms = Alarms(measurer.model, output)
        self.findings = Findings(output, on_finding)
        self._targets = SeenTargets() if "targets" in measurer.names() else None
        self._has_updates = "updates" in measurer.names()
        self._steps = Steps(measurer.model, measurer.optimizer, output, self._arrived)
        self.num_measurements, self.seconds = 0, 0.0
        self._before: Snapshot | None = None
        self._last: tuple[int, HandedOver] | None = None
        self._finished = False
        if (earlier := output.writer.earlier) is not None:
            costs = earlier.series("cost", "seconds")[1]
            self.num_measurements, self.seconds = len(costs), sum(costs)
            self.turns.go_on(earlier, steps)
        elif not steps:
            with self._timed():
                measurer.measure_start(output)
        if self._wants_weights(steps):
            with self._timed(), suppress(Exception):  # weights that are not there yet; what stays is said at a step
                self._before = Snapshot.of(measurer.model)

    @contextmanager
    def _timed(self) -> Iterator[float]:
        start = time.perf_counter()
        try:
            yield start
        finally:
            self.seconds += time.perf_counter() - start

    def step(self, step: int, last: int, x: Batch, y: Batch, loss: Any, index: Any = None) -> None:
        """Take in a step, the one before it, its batch and its loss; measure if it is due and may be."""
        self.measurer.recent.see(x)
        samples = self.measurer.recent.batch_size or 1
        if self._targets is not None:
            self._targets.see(self.measurer.targets(x, y))
        if self._keeps_batches:
            self.measurer.seen_batches.see(x, y)
        self.turns.budget.train(samples, step - last)
        self._alarms.batch, self._alarms.step = (x, y), step
        seen = HandedOver(x, y, self._steps.see(step, loss, samples), self._weights_before(step, last), index)
        if self.turns.schedule.is_due(step, last):
            allowed = self._allowed(step)
            if allowed is None:
                self.turns.leave_out(step)
            else:
                self._measure(step, seen, allowed, turn=True)
        # a reference: what the loop writes over is what the end sees
        kept = seen if seen.before is None else HandedOver(x, y, seen.loss, index=index)
        self._last = None if x is None else (step, kept)
        self.measurer.recent.add(x, y)
        self._before = self._snapshot(step)
        self._look(step)

    def _arrived(self, step: int, loss: float) -> None:
        """The loss of a step is known."""
        samples, budget = self.measurer.recent.batch_size or 1, self.turns.budget
        spared = math.inf if math.isfinite(loss) or budget.share is None else budget.left()
        budget.cheap += self._alarms.look(step, loss, samples, spared)

    def _allowed(self, step: int) -> Allowed | None:
        available, measurer = self._available, self.measurer
        end = measurer.least(max(LEAST, available), later=True)  # smaller batches will be joined by then
        return self.turns.allowed(step, available, measurer.passes, measurer.least(available), end)

    @property
    def _available(self) -> int:
        return min(self.measurer.max_samples, self.measurer.recent.num_available)

    def _weights_before(self, step: int, last: int) -> Snapshot | None:
        """The snapshot of the step before; of the first one only where these weights, and no others, made the step.

        Between the monitor and the loop the weights may have been loaded, or drawn anew.
        """
        before = self._before if step == last + 1 else None
        if before is None or last != self._begun:
            return before
        before = before.still_there(self.measurer.model)
        return before if before.went_down(self.measurer.model) else None

    def _snapshot(self, step: int) -> Snapshot | None:
        """Weights before the next step, if it will be measured with a probe that asks for them."""
        if not self._wants_weights(step) or self._allowed(step + 1) is None:
            return None
        with self._timed():
            try:
                return Snapshot.of(self.measurer.model)
            except Exception as error:  # no memory, for example: training goes on
                self.output.error(step, "updates", error)
                return None

    def _wants_weights(self, step: int) -> bool:
        """Whether the next step is due to be measured with a probe that asks for the weights before it."""
        return self._has_updates and self.turns.schedule.is_due(step + 1)

    def asked_for(self, step: int, x: Batch, y: Batch, loss: Any) -> None:
        """Measure with every probe."""
        number = None
        if loss is not None:
            try:
                number = as_number(loss)
            except Exception as error:
                self.output.refuse(step, "loss", "batch_loss", in_words(error))
        self._measure(step, HandedOver(x, y, number), self.turns.asked_for(), asked=True)
        self._look(step)

    def _look(self, step: int, *, at_end: bool = False) -> None:
        """See what the record shows, if that may have changed."""
        if self.findings.is_due(self.num_measurements, self._alarms.num_recorded, at_end=at_end):
            with self._timed():
                self.findings.look(step, self.num_measurements, self._alarms.num_recorded, at_end=at_end)

    def _measure(
        self, step: int, seen: HandedOver, allowed: Allowed, *, turn: bool = False, asked: bool = False
    ) -> None:
        with self._timed() as start:
            self.turns.begin(step)
            self._steps.fetch()
            plan = self.measurer.measure(self.output, step, seen, allowed)
            self.turns.spend(plan, asked=asked, turn=turn)
            if plan.is_left_out:
                return
            self.num_measurements += 1
            self._record_targets(step)
            work = {"passes": plan.cheap + plan.dearer, "num_samples": plan.num_samples}
            self.output.values(step, "work", work | self.turns.state())
            self.output.values(step, "cost", {"seconds": time.perf_counter() - start})
            self.output.send(step)

    def _record_targets(self, step: int) -> None:
        targets = {} if self._targets is None else self._targets.take()
        if targets:
            self.output.values(step, "all_targets", targets, forward=False)

    def log(self, step: int, probe: str, values: dict[str, Any]) -> None:
        """Append numbers of the loop's own."""
        with self._timed():
            self.output.values(step, probe, values)
            self.output.send(step)

    def finish(self, step: int, error: BaseException | None) -> None:
        """Measure the last step, unless it was, and tell what was left out and how the training ended."""
        if self._finished or step == self._begun:
            return
        self._finished = True
        self._steps.fetch()
        if self._last is not None and self.turns.measured < self._last[0]:
            allowed = self.turns.at_end(self.measurer.least(self._available))
            if allowed is None:
                self.turns.leave_out(step)
            else:
                self._measure(*self._last, allowed)
        self._record_targets(step)
        if self._last is not None:
            with self._timed():
                most = math.inf if self.turns.budget.share is None else self.turns.budget.left()
                self.turns.spend_at_end(*self.measurer.measure_last(self.output, *self._last, most))
        self._last = self._before = None
        self.measurer.seen_batches.clear()
        self._alarms.batch = None
        text = None
        if error is not None:
            kind, words = type(error).__name__, in_words(error)
            text = kind if words == kind else f"{kind}: {words}"
        self.output.values(step, "schedule", self.turns.summary(), forward=False)
        self.output.values(step, "end", {"steps": step, "error": text}, forward=False)
        self._look(step, at_end=True)
