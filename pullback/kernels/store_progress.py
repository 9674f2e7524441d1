"""Progress of long work: a bar on a terminal, lines of text elsewhere, nothing if it is not wanted."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from pullback.kernels.store_plan import duration

LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Says on standard error how many bytes are done, how fast, and how long it will take.

    Args:
        shown: whether to say anything.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            console = Console(stderr=True)
            if console.is_terminal:
                columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
                self.bar = Bar(TextColumn("{task.description}"), *columns, console=console)

    def say(self, text: str) -> None:
        """Print some lines."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a stretch of work of ``total`` bytes, of which ``done`` were done before."""
        self.what, self.total, self.done, self.before = what, total, done, done
        self.began = self.last = time.perf_counter()
        if self.bar is not None:
            self.task = self.bar.add_task(what, total=total, completed=done)

    def advance(self, count: int) -> None:
        """Count bytes done; say so, unless the last line is recent."""
        self.done += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
            return
        now = time.perf_counter()
        if self.shown and (now - self.last >= LINE_EVERY or self.done >= self.total):
            self.last = now
            rate = (self.done - self.before) / max(now - self.began, 1e-9)
            left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            self.say(f"{self.what}: {self.done / 1e9:.3g} of {self.total / 1e9:.3g} GB, {rate / 1e6:.0f} MB/s{left}")

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
