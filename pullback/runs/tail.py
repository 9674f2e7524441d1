"""The last records of a run, as lines: where they begin, and how they become a block once there are many."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pullback.runs.block_file import BLOCKS_FOLDER, block_path
from pullback.runs.folder import DRAFT
from pullback.runs.lines import Lines
from pullback.runs.one_record import Record
from pullback.runs.schema import META_FILE, RECORDS_FILE, SCHEMA_VERSION, parse_line
from pullback.runs.write_block import write_block

FOLLOWS = "follows"  # the first line of what is left of the lines: {"follows": 3} of block 3
MOST_BYTES = 2**22  # of lines, before they become a block


def split_tail(content: bytes) -> tuple[int | None, bytes]:
    """Number of the block that lines follow, and the lines; None where they do not say it, as there are none."""
    if not content:
        return None, content
    first, _, rest = content.partition(b"\n")
    number = followed(first)
    return (0, content) if number is None else (number, rest)


def followed(line: bytes) -> int | None:
    """The number in a first line, or None of any other."""
    if not line.startswith(b'{"' + FOLLOWS.encode()):
        return None
    try:
        number = json.loads(line)[FOLLOWS]
    except (ValueError, KeyError, RecursionError):
        return None
    return number if type(number) is int and number >= 0 else None


def num_blocks(folder: Path) -> int:
    """The highest number among the blocks there are."""
    return max((int(each.stem) for each in (folder / BLOCKS_FOLDER).glob("*.zip") if each.stem.isdecimal()), default=0)


def lines_of(content: bytes, follows: int = 0, before: Lines | None = None) -> Lines:
    """Records of lines, and how many are none; those that were read before are not read again."""
    held: list[Record] = []
    start = damaged = 0
    if before is not None and before.follows == follows and before.whole[0] <= len(content):
        start, count, damaged = before.whole
        held += before.held[:count]
    end = max(start, content.rfind(b"\n") + 1)
    damaged += _append(content[start:end], held)
    whole = (end, len(held), damaged)
    damaged += _append(content[end:], held)  # of a line that may yet grow
    return Lines(tuple(held), damaged, follows, whole)


def _append(content: bytes, held: list[Record]) -> int:
    """Take in the records of lines; how many lines are none."""
    parsed = [parse_line(line) for line in content.split(b"\n") if line.strip()]
    held += [Record(**each) for each in parsed if each is not None]
    return parsed.count(None)


def make_block(folder: Path) -> None:
    """Turn all lines into a block, and begin anew; a reader at any moment, and a crash, find each record once.

    Raises:
        OSError: the disk does not take it. The lines stay as they are.
    """
    path = folder / RECORDS_FILE
    after, content = split_tail(path.read_bytes())
    lines = lines_of(content)
    number = (after or 0) + 1
    write_block(block_path(folder, number), lines.held, lines.skipped)
    if number == 1:
        raise_schema(folder)
    _replace(path, json.dumps({FOLLOWS: number}) + "\n")


def raise_schema(folder: Path) -> None:
    """Say in the run's description that it has blocks, which earlier versions would not see."""
    path = folder / META_FILE
    meta = json.loads(path.read_bytes())
    _replace(path, json.dumps(meta | {"schema": SCHEMA_VERSION}, indent=1, allow_nan=False))


def _replace(path: Path, text: str) -> None:
    """Write a file in place of one that is there, which stands until the new one is whole."""
    draft = path.with_name(path.name + DRAFT)
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
