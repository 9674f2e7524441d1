"""What the record shows while it is written: looked at now and then, and each new finding told once."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pullback._checks import input_error
from pullback._hooks import judges, verdicts
from pullback.monitor.output import Output
from pullback.runs import Run
from pullback.runs.schema import in_words

OnFinding = Callable[[Any], object]
Key = tuple[str, str | None]  # a finding's name and its layer

DENSE = 4  # measurements so far to one look, at least: all looks together then cost a few times what the last one does
# What passes in many a training that goes well is told once it has been seen over so many measurements in a row.
HELD = 4
# A mistake of the loop or the data does not pass, nor does a number that is none.
FACTS = frozenset({
    "not-measured", "non-finite-data", "non-finite-outputs", "non-finite-gradients", "loss-of-probabilities",
    "gradients-not-zeroed", "parameters-not-trained", "weight-decay-too-high", "schedule-at-zero", "data-not-shuffled",
    "outlying-samples", "batch-norm-batch-too-small",
})  # fmt: skip
# A rate that is too high wrecks within few steps, or not; all else hangs on whether training works, which few steps do
# not tell: it is told once it has lasted for so many.
RATE = frozenset({"learning-rate-too-high", "divergence"})
STEPS = 256
# What says that a training is slow holds of nearly every one at first: it is told once it has lasted for half of the
# steps, and for so many.
SLOW = frozenset({"learning-rate-too-low", "not-learning", "saddle-plateau", "minimum-plateau"})
LASTING = 500


class Findings:
    """Looks at the run's own record as it stands on the disk, as ``pullback.diagnose`` does.

    After each of the first measurements, later whenever a quarter more was made, at every alarm, and at the end. Nobody
    looks where nobody asks for findings. What may pass is new once it has lasted (``HELD``, ``STEPS``, ``LASTING``), or
    at the end.

    Args:
        output: of the run; its sinks may ask for findings, too. What a run that goes on has shown before is not new.
        on_finding: called with each finding above "info" when it first appears, a name and a layer once.
    """

    def __init__(self, output: Output, on_finding: OnFinding | None) -> None:
        self.output, self._on_finding = output, on_finding
        self._waiting: deque[Any] = deque()
        self._next, self._alarms = 1, 0  # measurements at which to look, and alarms that were seen
        self._said: tuple[str, list[Any]] = "", []  # verdict and findings of the last look
        self._known: set[Key] = set()
        self._since: dict[str, tuple[int, int]] = {}  # step and measurements at first, of what every look saw since
        if self._is_asked and output.writer.earlier is not None:
            with suppress(Exception):  # what cannot be told of it is new, then
                self._new(self._judged(output.writer.earlier), None, 0)

    @property
    def _is_asked(self) -> bool:
        return self._on_finding is not None or self.output.tells

    def is_due(self, measurements: int, alarms: int, *, at_end: bool = False) -> bool:
        """Whether it is time to look, and somebody asks; as of ``look``."""
        return (at_end or measurements >= self._next or alarms > self._alarms) and self._is_asked

    def look(self, step: int, measurements: int, alarms: int, *, at_end: bool = False) -> None:
        """See what is new, if it is time to.

        Args:
            step: at hand.
            measurements: made so far.
            alarms: recorded so far.
            at_end: whatever the time, and nothing follows.
        """
        if not self.is_due(measurements, alarms, at_end=at_end):
            return
        self._next, self._alarms = measurements + max(1, measurements // DENSE), alarms
        try:
            with warnings.catch_warnings():  # about lines that were damaged before
                warnings.simplefilter("ignore")
                run = self.output.writer.so_far()
            found = self._judged(run)
            verdict = "".join(say(run, found) for say in verdicts)
        except Exception as error:  # a record that cannot be read back must not end a training run
            self.output.say_once("findings", f"what the record shows could not be told ({in_words(error)})")
            return
        new = self._new(found, None if at_end else step, measurements)
        if self._on_finding is not None:
            self._waiting.extend(new)
        if (verdict, found) != self._said or at_end:
            self._said = verdict, found
            self.output.tell(step, verdict, found, new)
        if at_end:
            self.output.end(step, run)

    def _judged(self, run: Run) -> list[Any]:
        return [finding for judge in judges for finding in judge(run)]

    def _new(self, found: list[Any], step: int | None, measurements: int) -> list[Any]:
        """Those above "info" that were not told yet, and are to be told at a step, or at the end (None)."""
        seen = {(each.name, each.layer): each for each in found if each.severity != "info"}
        if step is not None:
            names = {name for name, _ in seen}  # of any layer: which one is worst changes
            self._since = {name: self._since.get(name, (step, measurements)) for name in names}
            seen = {key: each for key, each in seen.items() if self._lasts(each, step, measurements)}
        new = [each for key, each in seen.items() if key not in self._known]
        self._known |= seen.keys()
        return new

    def _lasts(self, finding: Any, step: int, measurements: int) -> bool:
        """Whether it is a fact, or was seen for long enough to be none that passes."""
        first, measured = self._since[finding.name]
        if finding.name in SLOW:
            return step >= first + max(first, LASTING)
        wrecked = finding.name == "divergence" and "last loss" not in finding.evidence  # a loss that is no number
        if finding.name in FACTS or wrecked:
            return True
        return measurements >= measured + HELD - 1 and (finding.name in RATE or step >= first + STEPS)

    def hand_on(self) -> None:
        """Call ``on_finding`` with what is new. What it raises passes through, and it is called no more."""
        on_finding, self._on_finding = self._on_finding, None
        while on_finding is not None and self._waiting:
            on_finding(self._waiting.popleft())
        self._on_finding = on_finding


def chosen_callable(on_finding: Any, where: str) -> OnFinding | None:
    """Something to call with a finding, or None.

    Raises:
        InputError: it cannot be called.
    """
    if on_finding is not None and not callable(on_finding):
        got = in_words(on_finding)
        raise input_error(where, "`on_finding` as a function of a finding", got, "Pass a function, `print` for example")
    return on_finding
