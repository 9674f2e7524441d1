"""Appends to a run folder. Every record is one write of one line, so a killed process tears at most the last."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from pullback._checks import input_error
from pullback.runs.array_file import set_aside, write_array
from pullback.runs.course_writer import CourseWriter
from pullback.runs.folder import DRAFT, check_free, chosen_on_exists, next_free
from pullback.runs.reader import Run, load_run
from pullback.runs.schema import META_FILE, RECORDS_FILE, RESUME, WITHOUT_BLOCKS, encode, encode_values, in_words
from pullback.runs.tail import MOST_BYTES, make_block


class RunWriter:
    """The one writer of a run folder.

    Args:
        path: the folder; made if it does not exist.
        meta: what is known about the run before it starts (model, optimizer, settings). Paths, arrays and tensors are
            stored as texts and numbers, anything else as its text.
        resume: steps the training has behind it. A run that is there is then continued: what it holds of later steps
            is left behind, its description stays. None takes a new or empty folder only.
        on_exists: what to do where the folder is taken: "refuse"; "resume", to continue its run after ``resume`` steps,
            or after the last that it knows; "number", to take the next free name: ``path-2``, ``path-3`` and so on.
            None is "resume" where ``resume`` is given, else "refuse".

    Attributes:
        path: the folder.
        made: steps of the run that are behind it.
        earlier: the run that is continued, as it stood after ``resume`` steps; None for a new one.
        course: takes what is shown at every step.

    Raises:
        InputError: the folder already holds a run that is not to be continued, or anything else: nothing is
            overwritten; the run to be continued is another model's.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with RunWriter(folder, {}) as writer:
        ...     for step in range(4):
        ...         writer.append(step, "loss", {"loss": 2.5 - step})
        >>> with RunWriter(folder, {}, resume=1) as writer:
        ...     writer.append(2, "loss", {"loss": 0.0})
        >>> load_run(folder).series("loss", "loss")
        ([0, 1, 2], [2.5, 1.5, 0.0])
    """

    def __init__(
        self, path: str | Path, meta: dict[str, Any], *, resume: int | None = None, on_exists: str | None = None
    ) -> None:
        on_exists = chosen_on_exists(on_exists, resume, "RunWriter")
        self.path = next_free(Path(path)) if on_exists == "number" else Path(path)
        self.earlier = None
        if on_exists == "resume" and (self.path / META_FILE).is_file():
            self.earlier = load_run(self.path)
            resume = self.earlier.last_step if resume is None else resume
            self.earlier = self.earlier.until(resume)
        self.made = resume or 0
        self._torn = False  # whether the file ends within a line
        self._lock = Lock()  # records may come from several threads
        self._start = time.perf_counter()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if self.earlier is None:
            self._begin({"schema": WITHOUT_BLOCKS, "created": now, **encode(meta, in_words)})
        else:
            _check_same_model(self.earlier, meta)
            self._continue(self.earlier, self.made, now)
        self.course = CourseWriter(self.path, None if self.earlier is None else self.made)

    def _begin(self, document: dict[str, Any]) -> None:
        check_free(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / (META_FILE + DRAFT)
        draft.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        self._records = self._open()
        draft.replace(self.path / META_FILE)  # a folder is a run once this file stands

    def _continue(self, earlier: Run, step: int, now: str) -> None:
        self._start -= earlier.seconds
        self._records = self._open()
        self._torn = _ends_within_a_line(self.path / RECORDS_FILE)
        set_aside(self.path, step)
        self.append(step, RESUME, {"resumed": now})

    def _open(self) -> int:
        file = os.open(self.path / RECORDS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._room = MOST_BYTES - os.fstat(file).st_size  # bytes of lines until they become a block
        return file

    def append(self, step: int, probe: str, values: dict[str, Any]) -> None:
        """Append the numbers one probe measured at one step.

        Raises:
            InputError: a value that no record holds, see ``runs.schema``.
        """
        kept, refused = encode_values(values)
        for name, reason in refused.items():
            where, remedy = f"run folder {self.path}", "Pass numbers, texts, and lists or dicts of them"
            raise input_error(where, "values that a record can hold", f"{probe}.{name}: {reason}", remedy)
        self.append_encoded(step, probe, kept)

    def append_encoded(self, step: int, probe: str, kept: dict[str, Any]) -> None:
        """Append what ``schema.encode_values`` kept of them."""
        self._write({"step": step, "probe": probe, "values": kept})

    def append_error(self, step: int, probe: str, error: BaseException) -> None:
        """Append that a probe failed, and why."""
        self._write({"step": step, "probe": probe, "error": f"{type(error).__name__}: {in_words(error)}"})

    def write_array(self, step: int, probe: str, name: str, array: np.ndarray) -> None:
        """Write one array under ``<probe>/<step>/<name>``, in place of one that is there."""
        write_array(self.path, f"{probe}/{step}/{name}", array)

    def so_far(self) -> Run:
        """The run as it stands, with what waits to be written of the courses."""
        run = load_run(self.path)
        return replace(run, courses=run.courses.followed_by(self.course.waiting()))

    def _write(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.perf_counter() - self._start, 6)
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        with self._lock:
            rest = (("\n" if self._torn else "") + line).encode("utf-8")
            self._room -= len(rest)
            while rest:  # a full disk may take a part of a line and refuse the rest
                written = os.write(self._records, rest)
                rest = rest[written:]
                self._torn = bool(rest)
            if self._room < 0:
                self._make_block()

    def _make_block(self) -> None:
        try:
            make_block(self.path)
        except OSError:  # what is written stays as it is; the next try is after as many lines
            self._room = MOST_BYTES
            return
        os.close(self._records)
        self._records = self._open()

    def close(self) -> None:
        """Push what was written to the disk; further calls do nothing."""
        if self._records >= 0:
            records, self._records = self._records, -1
            try:
                self.course.close()
            finally:
                try:
                    os.fsync(records)
                finally:
                    os.close(records)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_same_model(earlier: Run, meta: dict[str, Any]) -> None:
    """Refuse to continue a run with a model of another size or with other layers."""
    then, now = (each if isinstance(each, dict) else {} for each in (earlier.meta.get("model"), meta.get("model")))
    expected = got = ""
    if then.get("num_params") != now.get("num_params"):
        expected, got = f"{then.get('num_params')} trainable parameters", str(now.get("num_params"))
    elif then.get("layers") != now.get("layers"):
        expected, got = "the same layers", "others"
    if expected:
        where = f"run folder {earlier.path}"
        remedy = "Choose another folder for another model"
        raise input_error(where, f"{expected} as the run that is continued", got, remedy)


def _ends_within_a_line(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
