"""Reads a run folder, also while it is written, and whatever state a crash left it in."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from pullback._callers import users_level
from pullback._checks import input_error
from pullback._hooks import judges
from pullback._results import Drawn
from pullback.runs.array_file import array_steps, read_array
from pullback.runs.block_file import Block, block_path
from pullback.runs.course_file import Course
from pullback.runs.lines import Lines
from pullback.runs.one_record import Record
from pullback.runs.records import END, Records, records_of
from pullback.runs.rows import Part
from pullback.runs.schema import META_FILE, RECORDS_FILE, SCHEMA_VERSION
from pullback.runs.table import Table
from pullback.runs.tail import lines_of, num_blocks, split_tail

MOMENT = 0.02  # seconds in which a writer that is alive has finished its line


@dataclass(frozen=True, eq=False)
class Run(Drawn):
    """A run as it stood when it was read.

    Attributes:
        path: its folder.
        meta: contents of ``run.json``.
        records: in the order they were written, without those that a resumed run left behind: of steps that were
            made once more. What they hold is read when it is asked for.
        skipped: lines that were no records.
        superseded: records that were left behind.
        resumed: steps that training was resumed from.
        courses: what was shown at every step, see ``course``.
        lost_blocks: numbers of blocks of records (``runs.block_file``) that cannot be read.
    """

    path: Path
    meta: dict[str, Any]
    records: Sequence[Record]
    skipped: int = 0
    superseded: int = 0
    resumed: tuple[int, ...] = ()
    courses: Course = field(default_factory=Course)
    lost_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Records may be handed over as any sequence."""
        object.__setattr__(self, "records", records_of(self.records))

    @property
    def _records(self) -> Records:
        return records_of(self.records)

    @property
    def steps(self) -> list[int]:
        """Steps at which anything was measured, ascending."""
        return self._records.steps.tolist()

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
        return iter(self._records.of(probe))

    @property
    def failed(self) -> list[Record]:
        """Records of probes that failed, in the order they were written."""
        return self._records.failed()

    @property
    def last_step(self) -> int:
        """The last at which anything was measured, or shown by the loop; 0 of none."""
        shown = [self.course(name)[0][-1:].tolist() for name in self.courses.names()]
        return max([*self._records.steps[-1:].tolist(), *(step for each in shown for step in each)], default=0)

    @property
    def seconds(self) -> float:
        """From the start to the last record, without what lies between an end and a resumption."""
        return self._records.last_time()

    @property
    def measured(self) -> dict[str, np.ndarray]:
        """Of each probe the steps (S,) of its records that succeeded, as they were written; reads no values."""
        return dict(self._records.succeeded)

    @property
    def extent(self) -> str:
        """At how many steps the monitor measured, and the first and last of them, in words; without what was logged."""
        steps = np.unique(self.measured.get("cost", np.empty(0, np.int64))).tolist() or self.steps
        if not steps:
            return "no measurement"
        return f"measured at {len(steps):,} step{'s' * (len(steps) > 1)}, {steps[0]:,} to {steps[-1]:,}"

    @property
    def metrics(self) -> list[tuple[str, str]]:
        """Probe and metric of all that was recorded, in the order in which it first appeared; reads no values."""
        return self._records.metrics()

    def series(self, probe: str, metric: str) -> tuple[list[int], list[Any]]:
        """Steps and values of one metric, where it was measured."""
        cells = self._records.cells(probe, metric)
        order = np.argsort(cells.steps, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return cells.steps.tolist(), cells.values
        return cells.steps[order].tolist(), [cells.values[place] for place in order.tolist()]

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
        steps, values = self.courses.of(name)
        return steps.copy(), values.copy()

    def refreshed(self) -> Run:
        """The run as it stands now, or this very one where nothing is new; what is known of it is not read again.

        For whoever looks on while it is written: what is new are ``run.records[count:]``, with the count of before, as
        long as ``run.resumed`` is the same.

        Raises:
            InputError: the folder is no run any more.

        Cost: of what is new, and about ten milliseconds a million steps.
        """
        return _loaded(self.path, self)

    def until(self, step: int) -> Run:
        """The run as it stood after that many steps."""
        return replace(self, records=self._records.until(step), courses=replace(self.courses, last=step))

    def table(self) -> dict[str, list[Any]]:
        """Columns of equal length, ``step`` first; what was not measured at a step is None.

        Columns are named ``probe.metric``, and ``probe.metric.key`` for metrics that are dicts (one value a layer).
        Each is made when it is first asked for, and costs its length then. Of a long run entries that are lists are
        made anew whenever they are looked at: a change within one of them is not kept.
        """
        return Table(self._records)

    def to_pandas(self) -> Any:
        """``table()`` as a ``pandas.DataFrame``, indexed by step.

        Raises:
            InputError: pandas is not installed.
        """
        return Table(self._records).to_pandas()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.extent})"

    def array_steps(self, probe: str, name: str) -> list[int]:
        """Steps at which an array was stored."""
        return array_steps(self.path, probe, name)

    def array(self, probe: str, step: int, name: str) -> np.ndarray | None:
        """A stored array, or None (with a warning) where it is missing or damaged."""
        try:
            return read_array(self.path, f"{probe}/{step}/{name}")
        except Exception as error:  # what is damaged fails in many ways; the run stays readable
            warnings.warn(
                f"{self.path.name}: array {probe}/{step}/{name} cannot be read ({error})", stacklevel=users_level()
            )
            return None


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Lines that are no records (torn by a crash, or altered) are skipped with one warning that counts them. Nothing
    in the folder is executed.

    Args:
        path: the folder.

    Returns:
        The run as it is on disk now; one that is still written is read up to its last whole record.

    Raises:
        InputError: the folder is no run, or was written by a newer version.

    Cost: records that are not in blocks yet are read at once; blocks and courses when they are asked for.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> with RunWriter(tempfile.mkdtemp() + "/run", {"lr": 0.1}) as writer:
        ...     writer.append(50, "loss", {"loss": 0.25})
        >>> run = load_run(writer.path)
        >>> run.meta["lr"], [(record.step, record.values["loss"]) for record in run.of("loss")]
        (0.1, [(50, 0.25)])
    """
    given: object = path
    if not isinstance(given, str | PathLike):
        remedy = "Pass the folder that `pb.Monitor` or `pullback demo` wrote"
        raise input_error("load_run", "the path of a run folder", type(given).__name__, remedy)
    return _loaded(Path(path), None)


def _loaded(path: Path, before: Run | None) -> Run:
    meta = _described(path)
    known = None if before is None else before._records
    records, skipped, lost = _records_in(path, known)
    courses = Course.read(path) if before is None else before.courses.grown(path)
    if before is not None and records is known and courses is before.courses and meta == before.meta:
        return before
    if skipped > (0 if before is None else before.skipped):
        warnings.warn(f"{path}: {skipped} damaged lines in {RECORDS_FILE} were skipped", stacklevel=users_level())
    if lost and (before is None or lost != before.lost_blocks):
        numbers = ", ".join(map(str, lost))
        text = f"{path}: block {numbers} of its records is damaged; what it held is left out"
        warnings.warn(text, stacklevel=users_level())
    superseded = sum(map(len, records.parts)) - len(records) - len(records.resumptions)
    resumed: list[int] = []
    for _, _, step in records.resumptions:
        resumed = [*(earlier for earlier in resumed if earlier <= step), step]
    return Run(path, meta, records, skipped, superseded, tuple(resumed), courses, lost)


def _described(path: Path) -> dict[str, Any]:
    """Contents of ``run.json``."""
    where = f"load_run({path})"
    remedy = "Pass the folder that `pb.Monitor` or `pullback demo` wrote"
    try:
        meta = json.loads((path / META_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        below = sorted(each.parent.name for each in path.glob(f"*/{META_FILE}"))
        got = f"a folder of {len(below)} run{'s' * (len(below) > 1)}" if below else "none"
        remedy = f"Pass one of its runs, {path / below[0]} say" if below else remedy
        raise input_error(where, f"a run folder with {META_FILE}", got, remedy) from None
    except (ValueError, RecursionError):
        raise input_error(where, f"a readable {META_FILE}", "damaged JSON", remedy) from None
    version = meta.get("schema") if isinstance(meta, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise input_error(where, f"schema 1 to {SCHEMA_VERSION}", repr(version), "Update pullback to read this run")
    return dict(meta)


def _records_in(folder: Path, known: Records | None) -> tuple[Records, int, tuple[int, ...]]:
    """Records, how many lines are none, and numbers of blocks that are damaged; the known ones where nothing is new.

    The lines say which block they follow: while a writer makes the next one of them, they are read as lines.
    """
    follows, lines = split_tail(_content(folder / RECORDS_FILE))
    follows = num_blocks(folder) if follows is None else follows
    opened = {part.path: part for part in known.parts if isinstance(part, Block)} if known is not None else {}
    before = known.parts[-1] if known is not None and known.last == END else None
    tail = lines_of(lines, follows, before if isinstance(before, Lines) else None)
    blocks: list[Part] = []
    lost = []
    for number in range(1, follows + 1):
        path = block_path(folder, number)
        try:
            blocks.append(opened[path] if path in opened else Block.open(path))
        except ValueError:
            lost.append(number)
    skipped = tail.skipped + sum(block.skipped for block in blocks)
    if known is not None and isinstance(before, Lines) and len(blocks) == len(opened) and tail.is_same(before):
        return known, skipped, tuple(lost)
    return Records((*blocks, tail)), skipped, tuple(lost)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):  # a line that is just being written, or one that was torn
            time.sleep(MOMENT)
            content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content
