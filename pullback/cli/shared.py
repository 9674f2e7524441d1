"""What commands that write a page share: where it goes, counts, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def free_path(out: Path | None, group: str, kind: str, *, force: bool) -> Path:
    """Where the page goes; refused before anything is computed."""
    from pullback.charts.document import check_free

    path = out or Path("runs") / group / f"{kind}.html"
    check_free(f"{group} {kind}", path, "Pass --force to replace it, or another --out", overwrite=force)
    return path


def check_counts(group: str, least: int = 2, **counts: int) -> None:
    """Refuse counts of which there must be so many."""
    from pullback._checks import input_error

    for name, count in counts.items():
        if count < least:
            raise input_error(group, f"`--{name}` of at least {least}", str(count), "Pass a larger number")


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """Say what is being computed, on a terminal; nothing in a pipe."""
    from rich.console import Console

    with Console(stderr=True).status(f"Computing {what} …") as status:
        yield lambda now: status.update(f"Computing {now} …")


@contextmanager
def bar(what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """A bar of what is done, on a terminal; nothing in a pipe. What it yields counts one more."""
    from pullback._progress import Progress

    with Progress(sys.stderr.isatty(), unit) as progress:
        progress.start(what, total)
        yield lambda: progress.advance(1)
