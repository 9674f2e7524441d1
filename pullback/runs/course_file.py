"""What a loop showed at every step (its loss, say), in one file: appended in blocks, a few bytes a step.

``course.bin`` is a row of blocks. A block holds one series at some steps: MAGIC, the header, the name in ASCII, and,
compressed, the differences of its steps and its values. Each eight (or four) bytes of a number are spread over as many
planes, so that what hardly changes, signs and exponents, takes next to no room, and of the values their first or
second differences may stand in their place (of their bits, so nothing is lost), whichever is shorter. Values are held
in double precision where that takes hardly any room or where single precision does not hold them, else to the seven
digits of single precision. A block whose checksum fails is passed over: so a torn tail is cut.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import FileIO
from operator import itemgetter
from pathlib import Path

import numpy as np

from pullback.runs.planes import from_planes, planes, single
from pullback.runs.schema import RESUME

COURSE_FILE = "course.bin"
MAGIC = b"PbC1"
HEADER = struct.Struct(
    "<IIIBBB"
)  # checksum of all after it, bytes of the compressed part, count, format, name's length
BLOCK = 1024  # steps that wait in memory at most
OVERLAP = 2**16  # bytes that are read once more, to see whether a file has only grown
PART = 8  # and at most one in so many of those made: what a killed process loses
ROOM = 256  # bytes that double precision may take, and a fourth more a value: short runs keep every digit
FORMATS = ("<f4", "<f8")
ORDERS = (0, 1, 2)  # of differences
FEW = 16  # values which take ``ROOM`` at most however they are held: nothing is tried

Series = tuple[np.ndarray, np.ndarray]


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


@dataclass(frozen=True)
class Block:
    """One series at some steps, still compressed."""

    name: str
    count: int
    format: int
    order: int
    packed: bytes

    def decoded(self) -> Series:
        """Steps and values."""
        raw, kind = zlib.decompress(self.packed), FORMATS[self.format]
        steps = np.cumsum(from_planes(raw[: 8 * self.count], "<i8"), dtype=np.int64)
        bits = from_planes(raw[8 * self.count :], kind.replace("f", "u"))
        for _ in range(self.order):
            bits = np.cumsum(bits, dtype=bits.dtype)
        return steps, bits.view(kind).astype(np.float64)


def blocks(content: bytes, start: int = 0) -> Iterator[tuple[Block, int]]:
    """Every whole block from a place on, and the place where it ends."""
    place = content.find(MAGIC, start)
    while place >= 0:
        found = _block(content, place + len(MAGIC))
        if found is not None:
            yield found
        place = content.find(MAGIC, place + 1 if found is None else found[1])


def _block(content: bytes, start: int) -> tuple[Block, int] | None:
    body = start + HEADER.size
    if body > len(content):
        return None
    checksum, length, count, kind, order, name = HEADER.unpack_from(content, start)
    end = body + name + length
    if end > len(content) or zlib.crc32(content[start + 4 : end]) != checksum:
        return None
    text = content[body : body + name].decode("ascii", errors="replace")
    return Block(text, count, kind, order, content[body + name : end]), end


def encoded(name: str, steps: np.ndarray, values: np.ndarray) -> bytes:
    """A block of one series.

    Args:
        name: ASCII, at most 255 characters.
        steps: (S,) int64, ascending.
        values: (S,) float64.
    """
    kind, packed, order = 0, b"", 0
    if len(values) <= FEW:
        order, packed = _packed(steps, values, kind := 1)
    elif not single(values):
        order, packed = _packed(steps, values, 1)
        kind = int(len(packed) <= ROOM + len(values) // 4 or not _in_range(values))
    if not kind:
        order, packed = _packed(steps, values, 0)
    text = name.encode("ascii")
    rest = HEADER.pack(0, len(packed), len(values), kind, order, len(text))[4:] + text + packed
    return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def _packed(steps: np.ndarray, values: np.ndarray, kind: int) -> tuple[int, bytes]:
    """The shortest of the orders of differences, and what it gives."""
    apart = planes(np.concatenate((steps[:1], steps[1:] - steps[:-1])).astype("<i8", copy=False))
    with np.errstate(over="ignore"):
        bits = values.astype(FORMATS[kind], copy=False).view(FORMATS[kind].replace("f", "u"))
    if len(values) <= FEW:
        return 0, zlib.compress(apart + planes(bits), 1)
    found = []
    for order in ORDERS:
        found.append((order, zlib.compress(apart + planes(bits), 1)))
        bits = np.diff(bits, prepend=bits.dtype.type(0))
    return min(found, key=lambda each: len(each[1]))


def _in_range(values: np.ndarray) -> bool:
    """Whether single precision has all of them to its seven digits."""
    limits, size = np.finfo(np.float32), np.abs(values[np.isfinite(values)])
    return bool(np.all((size == 0) | ((size >= limits.tiny) & (size <= limits.max))))


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
