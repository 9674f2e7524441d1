"""What a loop showed at every step (its loss, say), in one file: appended in blocks, a few bytes a step.

``course.bin`` is a row of blocks (``course_block``), each of one series; what a crash tore is passed over, and cut when
the run is gone on with.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np

from pullback.runs.course_block import Block, Series, blocks
from pullback.runs.schema import RESUME

COURSE_FILE = "course.bin"
OVERLAP = 2**16  # bytes that are read once more, to see whether a file has only grown


@dataclass(frozen=True)
class Course:
    """The courses of a run, as they stood when the file was read.

    Attributes:
        content: of the file.
        last: the last step to tell of; None for all.

    Cost: ``of`` takes about 0.1 microseconds a step when it is first asked for a name.
    """

    content: bytes = field(default=b"", repr=False)
    last: int | None = None
    _read: dict[str, tuple[Series, int]] = field(init=False, default_factory=dict, repr=False, compare=False)
    _found: list[tuple[Block, int]] = field(init=False, default_factory=list, repr=False, compare=False)

    @classmethod
    def read(cls, folder: Path) -> Course:
        """Of a run folder; empty where there is none."""
        return cls().grown(folder)

    def grown(self, folder: Path) -> Course:
        """As it stands now; what was decoded before is not decoded again. Itself where nothing is new."""
        known = len(self.content)
        end = self.content[-OVERLAP:]
        try:
            with (folder / COURSE_FILE).open("rb") as file:
                file.seek(known - len(end))
                more = file.read()
                if self.last is not None or not more.startswith(end):  # a torn end was cut, or the file is another
                    file.seek(0)
                    return Course(file.read())
        except FileNotFoundError:
            return self if not known else Course()
        if len(more) == len(end):
            return self
        found = Course(self.content + more[len(end) :])
        found._read.update(self._read)
        found._found.extend(self._found)
        return found

    @cached_property
    def _blocks(self) -> list[tuple[Block, int]]:
        """Every whole block and where it ends; those that were found before are not looked for again."""
        start = self._found[-1][1] if self._found else 0
        self._found.extend(blocks(self.content, start))
        return self._found

    def of(self, name: str) -> Series:
        """Steps (S,) int64, ascending, and values (S,) float64 of one series; not what a resumed run left behind.

        They are shared with whoever else asks, and read only.
        """
        series, start = self._read.get(name, ((np.empty(0, np.int64), np.empty(0)), 0))
        if start < len(self.content):
            series, start = self._read[name] = self._decoded(name, series, start)
        return series

    def _decoded(self, name: str, series: Series, start: int) -> tuple[Series, int]:
        """A series with what stands from a place on, and where the last whole block ends."""
        kept = [series]
        for block, end in self._blocks[bisect_right(self._blocks, start, key=itemgetter(1)) :]:
            start = end
            if block.name == RESUME:
                last = int(block.decoded()[0][-1])
                kept = [_until(series, last) for series in kept]
            elif block.name == name:
                kept.append(block.decoded())
        series = np.concatenate([steps for steps, _ in kept]), np.concatenate([values for _, values in kept])
        series = series if self.last is None else _until(series, self.last)
        others = (steps for (steps, _), _ in self._read.values() if np.array_equal(steps, series[0]))
        series = next(others, series[0]), series[1]  # most are given at the same steps
        for part in series:
            part.flags.writeable = False
        return series, start

    def followed_by(self, content: bytes) -> Course:
        """These, and further blocks."""
        return replace(self, content=self.content + content)

    def names(self) -> list[str]:
        """Of the series there are."""
        return list(dict.fromkeys(block.name for block, _ in self._blocks if block.name != RESUME))


def _until(series: Series, last: int) -> Series:
    count = int(np.searchsorted(series[0], last, side="right"))
    return series[0][:count], series[1][:count]
