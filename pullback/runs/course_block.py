"""One series at some steps as a block of bytes: MAGIC, the header, the name in ASCII, and, compressed, its numbers.

Those are the differences of its steps and its values. Each eight (or four) bytes of a number are spread over as many
planes, so that what hardly changes, signs and exponents, takes next to no room, and of the values their first or
second differences may stand in their place (of their bits, so nothing is lost), whichever is shorter. Values are held
in double precision where that takes hardly any room or where single precision does not hold them, else to the seven
digits of single precision. A block whose checksum fails is passed over.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pullback.runs.planes import from_planes, planes, single

MAGIC = b"PbC1"
HEADER = struct.Struct(
    "<IIIBBB"
)  # checksum of all after it, bytes of the compressed part, count, format, name's length
ROOM = 256  # bytes that double precision may take, and a fourth more a value: short runs keep every digit
FORMATS = ("<f4", "<f8")
ORDERS = (0, 1, 2)  # of differences
FEW = 16  # values which take ``ROOM`` at most however they are held: nothing is tried

Series = tuple[np.ndarray, np.ndarray]


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
