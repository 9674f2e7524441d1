"""What is served: the page of a run, as ``write_report`` writes it, and the list of runs with their verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pullback._checks import PullbackError, input_error
from pullback.advisor import diagnose, verdict
from pullback.advisor.findings import SEVERITIES
from pullback.advisor.training_losses import training_losses
from pullback.charts.document import document_html
from pullback.charts.text import number
from pullback.report.live.feed import Feed
from pullback.report.live.folders import Folders, signature, stays_inside
from pullback.report.run.page import page_html
from pullback.report.run.series import NamedRun
from pullback.runs import Run, load_run
from pullback.runs.schema import META_FILE

LOOK = 0.5  # seconds a request may take for verdicts: of a folder of many runs the rest is told by the next
KEPT = 2  # runs whose numbers are kept for the next page, of those that were looked at last: up to 100 MB of each
AGAIN = 1.0  # seconds for which the runs that were found are those there are

Row = dict[str, Any]


class Pages:
    """The pages of some folders.

    Args:
        folders: which runs may be read.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.list = Feed(self._state, self._list)
        self._feeds: dict[str, Feed] = {}
        self._shown: dict[str, tuple[tuple[int, int], Run]] = {}
        self._rows: dict[str, tuple[Hashable, Row]] = {}
        self._runs: dict[str, tuple[Path, Path]] = {}
        self._found_at = -AGAIN

    def of(self, name: str) -> Feed | None:
        """The page of a run; None of a name that no run has, or had while it was shown."""
        if name not in self._feeds and (place := self._known().get(name)) is not None:
            run, root = place
            self._feeds[name] = Feed(partial(signature, run), partial(self._page, name, run, root))
        return self._feeds.get(name)

    def _page(self, name: str, run: Path, root: Path, version: str) -> str:
        _checked(run, root)
        return page_html([NamedRun(name, self._loaded(name, run))], live=version)

    def _loaded(self, name: str, run: Path) -> Run:
        """A run as it stands; what is known of it is not read again, as long as it is the same one."""
        stat = (run / META_FILE).stat()
        begun = stat.st_ino, stat.st_mtime_ns
        of_before, before = self._shown.pop(name, ((0, 0), None))
        loaded = load_run(run) if before is None or of_before != begun else before.refreshed()
        self._shown[name] = begun, loaded
        while len(self._shown) > KEPT:
            del self._shown[next(iter(self._shown))]
        return loaded

    def only(self) -> str | None:
        """The name of the run, if one was given and no folder of runs."""
        return next(iter(self._known()), None) if self.folders.single else None

    def _known(self) -> dict[str, tuple[Path, Path]]:
        if time.monotonic() - self._found_at >= AGAIN:
            self._runs, self._found_at = self.folders.runs(), time.monotonic()
        return self._runs

    def _state(self) -> Hashable:
        """Changes when a run does, comes or goes, and as long as there are runs that were not looked at yet."""
        self._look()
        return tuple((name, self._rows[name][0] if name in self._rows else None) for name in self._known())

    def _look(self) -> None:
        until = time.monotonic() + LOOK
        for name, (run, root) in self._known().items():
            try:
                state = signature(run)
            except OSError:
                continue
            if name not in self._rows or self._rows[name][0] != state:
                self._rows[name] = state, _row(name, run, root, self._loaded)
                if time.monotonic() > until:
                    return

    def _list(self, version: str) -> str:
        rows = [self._rows[name][1] if name in self._rows else _waiting(name) for name in self._known()]
        title = ", ".join(str(root.name or root) for root in self.folders.roots)
        return document_html("pullback.report", "runs.html", [], live=version, title=title, rows=rows)


def _checked(run: Path, root: Path) -> None:
    if not stays_inside(run, root):
        remedy = "Watch a folder that holds what it leads to"
        where = f"run folder {run.name}"
        raise input_error(where, "files of its own", "links that lead out of it", remedy)


def _waiting(name: str) -> Row:
    return {"name": name, "path": path_of(name), "severity": "", "verdict": "not looked at yet", "facts": []}


def _row(name: str, run: Path, root: Path, load: Callable[[str, Path], Run]) -> Row:
    """What the list says of a run."""
    row = _waiting(name)
    try:
        _checked(run, root)
        loaded = load(name, run)
        findings = diagnose(loaded)
    except (PullbackError, OSError) as error:
        return row | {"severity": "warning", "verdict": f"cannot be read: {error}"}
    gravest = max((SEVERITIES.index(each.severity) for each in findings), default=0)
    losses = training_losses(loaded)
    steps = [*loaded.steps[-1:], *losses.steps[-1:].tolist()]
    ended = next(iter(loaded.of("end")), None)
    written = max((each.stat().st_mtime for each in run.iterdir()), default=0.0)
    at = datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M:%S")  # of the machine's own clock
    facts = [
        ("Steps", f"{max(steps):,}" if steps else "–"),
        ("Loss", number(losses.last) if len(losses) else "–"),
        ("Written", at + (", ended" if ended is not None else "")),
    ]
    return row | {
        "severity": SEVERITIES[gravest] if gravest else "good",
        "verdict": verdict(loaded, findings),
        "facts": facts,
    }


def path_of(name: str) -> str:
    """Where the page of a run is, below ``/run/``."""
    return quote(name, safe="/")
