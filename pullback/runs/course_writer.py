"""Appends what a loop shows at every step to the courses of a run, some steps at a time."""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

from pullback.runs.course_block import blocks, encoded
from pullback.runs.course_file import COURSE_FILE
from pullback.runs.schema import RESUME

BLOCK = 1024  # steps that wait in memory at most
PART = 8  # and at most one in so many of those made: what a killed process loses


class CourseWriter:
    """Appends to the courses of a run folder.

    Args:
        folder: the run's.
        resume: steps that training goes on from, in a run that is there; None for a new one.
    """

    def __init__(self, folder: Path, resume: int | None = None) -> None:
        self._process, self._path = os.getpid(), folder / COURSE_FILE
        self._waiting: dict[str, tuple[array[int], array[float]]] = {}
        self._num_steps = self._num_waiting = 0
        self._last = -1
        if resume is not None and self._path.exists():
            content = self._path.read_bytes()
            end = max((end for _, end in blocks(content)), default=0)
            os.truncate(self._path, end)  # a torn tail
            self._append(encoded(RESUME, np.array([resume]), np.zeros(1)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what was shown at a step, not before the last.

        Raises:
            OSError: the disk does not take what has gathered; it is kept, and tried again with later blocks.
        """
        for name, value in values.items():
            steps, numbers = self._waiting.setdefault(name, (array("q"), array("d")))
            steps.append(step)
            numbers.append(value)
        if step > self._last:
            self._last = step
            self._num_steps += 1
            self._num_waiting += 1
            if self._num_waiting >= min(BLOCK, max(1, self._num_steps // PART)):
                self.flush()

    def flush(self) -> None:
        """Write what has gathered.

        Raises:
            OSError: as for ``add``.
        """
        self._num_waiting = 0
        if self._waiting:
            self._append(self.waiting())
            self._waiting.clear()

    def waiting(self) -> bytes:
        """What has gathered, as it would be written."""
        return b"".join(map(self._block, self._waiting))

    def _block(self, name: str) -> bytes:
        steps, values = self._waiting[name]
        return encoded(name, np.array(steps, np.int64), np.array(values, np.float64))

    def close(self) -> None:
        """Write what has gathered, onto the disk; further calls do nothing."""
        self.flush()
        if self._path.exists():
            with FileIO(self._path, "ab") as file:
                os.fsync(file.fileno())

    def __del__(self) -> None:
        """A loop that closes nothing loses nothing; a process that was forked from its own writes nothing."""
        if os.getpid() == self._process:
            with suppress(Exception):
                self.flush()

    def _append(self, block: bytes) -> None:
        with FileIO(self._path, "ab") as file:
            end = os.fstat(file.fileno()).st_size
            try:
                rest = block
                while rest:  # a full disk may take a part and refuse the rest
                    rest = rest[file.write(rest) :]
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
