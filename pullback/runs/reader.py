"""Reads a run folder, also while it is written, and whatever state a crash left it in."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pullback._callers import users_level
from pullback._checks import input_error
from pullback._hooks import judges
from pullback.runs.course_file import Course
from pullback.runs.schema import ARRAYS_FOLDER, META_FILE, RECORDS_FILE, RESUME, SCHEMA_VERSION, columns, parse_line

MOMENT = 0.02  # seconds in which a writer that is alive has finished its line


@dataclass(frozen=True)
class Record:
    """What one probe measured at one step, or why it could not (``error``)."""

    step: int
    time: float
    probe: str
    values: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """A run as it stood when it was read.

    Attributes:
        path: its folder.
        meta: contents of ``run.json``.
        records: in the order they were written, without those that a resumed run left behind: of steps that were
            made once more.
        skipped: lines that were no records.
        superseded: records that were left behind.
        resumed: steps that training was resumed from.
        courses: what was shown at every step, see ``course``.
    """

    path: Path
    meta: dict[str, Any]
    records: tuple[Record, ...]
    skipped: int = 0
    superseded: int = 0
    resumed: tuple[int, ...] = ()
    courses: Course = field(default_factory=Course)

    @property
    def steps(self) -> list[int]:
        """Steps at which anything was measured, ascending."""
        return sorted({record.step for record in self.records})

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What ``pullback.diagnose`` says of the run as it stands, as plain records, in its order.

        Then findings that were stored under other names, and those that are damaged.
        """
        found = [finding.as_record() for judge in judges for finding in judge(self)]
        names = {values["name"] for values in found}
        return found + [record.values for record in self.of("finding") if record.values.get("name") not in names]

    def of(self, probe: str) -> Iterator[Record]:
        """Records of one probe that succeeded, by step."""
        found = [record for record in self.records if record.probe == probe and record.error is None]
        return iter(sorted(found, key=lambda record: record.step))

    def series(self, probe: str, metric: str) -> tuple[list[int], list[Any]]:
        """Steps and values of one metric, where it was measured."""
        pairs = [(record.step, record.values[metric]) for record in self.of(probe) if metric in record.values]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def course(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """What the loop handed over or showed at every step, measured or not.

        Args:
            name: "loss" as it was handed over; "gradient_norm", of all gradients together as the optimizer saw them,
                at steps where it costs next to nothing; "learning_rate" of the first group that trains, and with
                several groups "learning_rate.1" and so on of the others. See ``docs/monitor.md``.

        Returns:
            Steps (S,) int64, ascending, and values (S,) float64, NaN and infinities among them; only those at which
            something was given, none for a name that never was.

        Cost: about 0.1 microseconds a step.
        """
        return self.courses.of(name)

    def until(self, step: int) -> Run:
        """The run as it stood after that many steps."""
        kept = tuple(record for record in self.records if record.step <= step)
        return replace(self, records=kept, courses=replace(self.courses, last=step))

    def table(self) -> dict[str, list[Any]]:
        """Columns of equal length, ``step`` first; what was not measured at a step is None.

        Columns are named ``probe.metric``, and ``probe.metric.key`` for metrics that are dicts (one value a layer).
        """
        steps = self.steps
        row = {step: place for place, step in enumerate(steps)}
        table: dict[str, list[Any]] = {"step": list(steps)}
        for record in self.records:
            for name, cell in columns(record.probe, record.values):
                table.setdefault(name, [None] * len(steps))[row[record.step]] = cell
        return table

    def array_steps(self, probe: str, name: str) -> list[int]:
        """Steps at which an array was stored."""
        folder = self.path / ARRAYS_FOLDER / probe
        if not folder.is_dir():
            return []
        return sorted(int(f.name) for f in folder.iterdir() if f.name.isdecimal() and (f / name).is_dir())

    def array(self, probe: str, step: int, name: str) -> np.ndarray | None:
        """A stored array, or None (with a warning) where it is missing or damaged."""
        import zarr

        try:
            group = zarr.open_group(self.path / ARRAYS_FOLDER, mode="r")
            return np.asarray(group[f"{probe}/{step}/{name}"])
        except Exception as error:  # a damaged store fails in many ways; the run stays readable
            warnings.warn(f"{self.path.name}: array {probe}/{step}/{name} cannot be read ({error})", stacklevel=users_level())
            return None


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Lines that are no records (torn by a crash, or altered) are skipped with one warning that counts them. Nothing
    in the folder is executed.

    Raises:
        InputError: the folder is no run, or was written by a newer version.
    """
    path = Path(path)
    where = f"load_run({path})"
    remedy = "Pass the folder that `pb.Monitor` or `pullback demo` wrote"
    try:
        meta = json.loads((path / META_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise input_error(where, f"a run folder with {META_FILE}", "none", remedy) from None
    except (ValueError, RecursionError):
        raise input_error(where, f"a readable {META_FILE}", "damaged JSON", remedy) from None
    version = meta.get("schema") if isinstance(meta, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise input_error(where, f"schema 1 to {SCHEMA_VERSION}", repr(version), "Update pullback to read this run")
    parsed = [parse_line(line) for line in _lines(path / RECORDS_FILE) if line.strip()]
    skipped = parsed.count(None)
    if skipped:
        warnings.warn(f"{path}: {skipped} damaged lines in {RECORDS_FILE} were skipped", stacklevel=users_level())
    current: list[Record] = []
    resumed: list[int] = []
    superseded = 0
    for record in (Record(**each) for each in parsed if each is not None):
        if record.probe != RESUME:
            current.append(record)
            continue
        kept = [earlier for earlier in current if earlier.step <= record.step]
        superseded += len(current) - len(kept)
        current, resumed = kept, [*(step for step in resumed if step <= record.step), record.step]
    return Run(path, meta, tuple(current), skipped, superseded, tuple(resumed), Course.read(path))


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):  # a line that is just being written, or one that was torn
            time.sleep(MOMENT)
            content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content.split(b"\n")
