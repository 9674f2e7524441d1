"""Progress of long work: a bar on a terminal, lines of text elsewhere, nothing if it is not wanted."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from pullback._text import duration

PATIENCE = 2.0  # seconds after which work that is mostly short is worth a word
LINE_EVERY = 10.0  # seconds between lines where there is no terminal


@contextmanager
def _random_kept() -> Iterator[None]:
    """Python's own random numbers go on where they were: rich draws some when it is imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


class Progress:
    """Says on standard error how much is done, how fast, and how long it will take.

    Args:
        shown: whether to say anything.
        unit: what is counted: "bytes", or any other word.
        patience: seconds a stretch of work may take before anything is said of it.
    """

    def __init__(self, shown: bool, unit: str = "bytes", patience: float = 0.0) -> None:
        self.shown, self.unit, self.patience = shown, unit, patience
        self.bar: Any = None
        if shown:
            with _random_kept():
                from rich.console import Console

                console = Console(stderr=True)
                if console.is_terminal:
                    self.bar = _bar(console, unit)
        self._running = False

    def say(self, text: str) -> None:
        """Print some lines."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stretch of work of ``total`` units, of which ``done`` were done before."""
        self.what, self.total, self.done, self.before = what, total, done, done
        self.began = self.last = time.perf_counter()
        if self.bar is not None:
            self.task = self.bar.add_task(what, total=total, completed=done)

    def advance(self, count: int) -> None:
        """Count units done; say so, unless the work is short or the last line is recent."""
        self.done += count
        now = time.perf_counter()
        if not self.shown or now - self.began < self.patience:
            return
        if self.bar is not None:
            self._run()
            self.bar.update(self.task, completed=self.done)
        elif now - self.last >= LINE_EVERY or self.done >= self.total:
            self.last = now
            rate = (self.done - self.before) / max(now - self.began, 1e-9)
            left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            self.say(f"{self.what}: {self._amounts(rate)}{left}")

    def _amounts(self, rate: float) -> str:
        if self.unit == "bytes":
            return f"{self.done / 1e9:.3g} of {self.total / 1e9:.3g} GB, {rate / 1e6:.0f} MB/s"
        return f"{self.done} of {self.total} {self.unit}"

    def _run(self) -> None:
        """Draw the bar from now on."""
        if not self._running:
            self._running = True
            self.bar.start()

    def __enter__(self) -> Progress:
        if self.bar is not None and not self.patience:
            self._run()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self.bar.stop()


def _bar(console: Any, unit: str) -> Any:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
    return Progress(TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn(), console=console)
