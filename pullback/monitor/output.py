"""Where measurements go. Nothing that fails here reaches the training; what is lost is counted and said."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from pullback._callers import users_level
from pullback._checks import input_error
from pullback.monitor.sinks import Sink, scalars_of
from pullback.runs import Run, RunWriter
from pullback.runs.schema import RESUME, decode, encode_values, in_words


class Output:
    """The run record and the sinks of one monitor.

    Args:
        writer: of the run folder.
        sinks: called with the scalars of a measurement; see ``sinks``.

    Attributes:
        num_lost: records and arrays the disk did not take.
    """

    def __init__(self, writer: RunWriter, sinks: Sequence[Sink] = ()) -> None:
        self.writer, self.sinks = writer, tuple(sinks)
        self.num_lost = 0
        self._unsaid = 0  # losses the record does not tell of yet
        self._warned: set[object] = set()
        self._scalars: dict[str, float] = {}

    def values(self, step: int, probe: str, values: dict[str, Any], *, forward: bool = True) -> None:
        """Record what a probe measured, and keep its scalars for ``send``, unless they are for the record alone.

        What a record cannot hold is left out, and said once.
        """
        probe = in_words(probe)
        kept, refused = encode_values(values)
        if probe == RESUME:  # a reader would leave out what was recorded before it
            kept, refused = {}, {"": f"the name {RESUME!r} stands for a training that was resumed"}
        for name, reason in refused.items():
            self.refuse(step, probe, name, reason)
        if refused and not kept:
            return
        self._write(step, self.writer.append_encoded, step, probe, kept)
        if self.sinks and forward:
            self._scalars |= scalars_of(probe, decode(kept))

    def course(self, step: int, shown: dict[str, float]) -> None:
        """Take in what a step showed. What the disk refuses is kept and tried again, at the last by ``close``."""
        with suppress(OSError):
            self.writer.course.add(step, shown)

    def refuse(self, step: int, probe: str, name: str, reason: str) -> None:
        """Say once, in the record too, that something handed over cannot be recorded."""
        what = f"{probe}.{name}" if name else probe
        if what not in self._warned:
            remedy = "Pass numbers, texts, and lists or dicts of them"
            self.error(step, probe, input_error("Monitor", "what a record can hold", f"{reason}, as {what}", remedy))
            self.say_once(what, f"`{what}` cannot be recorded: {reason}")

    def error(self, step: int, probe: str, error: BaseException) -> None:
        """Record that a probe failed."""
        self._write(step, self.writer.append_error, step, in_words(probe), error)

    def array(self, step: int, probe: str, name: str, array: np.ndarray) -> None:
        """Record an array."""
        self._write(step, self.writer.write_array, step, probe, name, array)

    def send(self, step: int) -> None:
        """Hand the scalars since the last call to every sink."""
        scalars, self._scalars = self._scalars, {}
        if scalars:
            self._every_sink(step, "__call__", step, dict(scalars))

    @property
    def tells(self) -> bool:
        """Whether a sink shows findings."""
        return any(hasattr(sink, "tell") for sink in self.sinks)

    def tell(self, step: int, verdict: str, findings: list[Any], new: list[Any]) -> None:
        """Hand what the run is found to be to the sinks that show it."""
        self._every_sink(step, "tell", step, verdict, findings, new)

    def end(self, step: int, run: Run) -> None:
        """Hand the run to the sinks that keep it."""
        self._every_sink(step, "end", run)

    def _every_sink(self, step: int, name: str, *args: Any) -> None:
        """Call every sink, or the method of those that have it; what fails there must not end a training run."""
        for place, sink in enumerate(self.sinks):
            try:
                if (call := getattr(sink, name, None)) is not None:
                    call(*args)
            except Exception as error:
                self.error(step, "forward", error)
                self.say_once(place, f"a sink failed ({in_words(error)}); the record has the numbers")

    def close(self) -> None:
        """Finish the record."""
        try:
            self.writer.close()
        except Exception as error:
            self.say_once("close", f"the end of the record may be lost ({in_words(error)})")

    def _write(self, step: int, write: Callable[..., None], *args: Any) -> None:
        """Write, and if the disk refuses say so once; when it takes records again, the first one tells how many."""
        try:
            if self._unsaid:
                self.writer.append_error(step, "record", OSError(f"{self._unsaid} records before this one were lost"))
                self._unsaid = 0
            write(*args)
        except Exception as error:  # a full disk must not end a training run
            self.num_lost += 1
            self._unsaid += 1
            self.say_once("record", f"a record was lost ({in_words(error)})")

    def refuse_once(self, step: int, about: str, error: BaseException, then: str) -> None:
        """Record an error and warn of it, unless it was done before."""
        if about not in self._warned:
            self.error(step, "monitor", error)
            self.say_once(about, f"{in_words(error)} {then}")

    def say_once(self, about: object, what: str) -> None:
        """Warn, unless it was said before; also where warnings are made errors, which would end the training."""
        if about in self._warned:
            return
        self._warned.add(about)
        text = f"Monitor: {what}; training goes on"
        try:
            warnings.warn(text, stacklevel=users_level())
        except Warning:
            print(text, file=sys.stderr)


def unseen(failed: dict[str, str]) -> str:
    """What one measurement did not see, in a sentence: the probes of each reason, and the reason with its remedy."""
    reasons: dict[str, list[str]] = {}
    for probe, reason in failed.items():
        reasons.setdefault(reason, []).append(probe)
    return "not measured: " + "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
