"""Records of many lines as one block, written at once."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pullback.runs.block_file import INDEX, MICRO
from pullback.runs.one_record import Record
from pullback.runs.packed_columns import pack
from pullback.runs.planes import spread

LEVEL = 3  # of compression: six takes twice the time for a hundredth less


def write_block(path: Path, records: Sequence[Record], skipped: int) -> None:
    """Write records as one block.

    Args:
        path: the file; its folder is made. One of that name, which a killed process left, is replaced.
        records: in their order.
        skipped: damaged lines among theirs.

    Raises:
        OSError: the disk does not take it; nothing is left of it.
    """
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".part")
    try:
        with draft.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as members:
                for name, content in _members(records, skipped):
                    members.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, LEVEL)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _members(records: Sequence[Record], skipped: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member."""
    probes: dict[str, int] = {}
    errors: dict[str | None, int] = {None: 0}
    named: dict[tuple[int, str], dict[str | None, None]] = {}
    codes, failed = [], []
    for record in records:
        code = probes.setdefault(record.probe, len(probes))
        codes.append(code)
        failed.append(errors.setdefault(record.error, len(errors)))
        for metric, cell in record.values.items():
            named.setdefault((code, metric), {}).update(dict.fromkeys(cell if isinstance(cell, dict) else (None,)))
    times = np.array([record.time for record in records])
    micros = np.rint(times * MICRO)
    exact = bool(np.all(np.abs(micros) < 2.0**53) and np.array_equal(micros / MICRO, times))
    rows = [
        np.array(codes, np.int64),
        np.array([record.step for record in records], np.int64),
        micros.astype(np.int64) if exact else times,
        np.array(failed, np.int64),
    ]
    keys = {tuple(each): number for number, each in enumerate(dict.fromkeys(map(tuple, named.values())))}
    metrics = [(*each, keys[tuple(under)]) for each, under in named.items()]
    specs, content = zip(*map(spread, rows), strict=True)
    header = {
        "probes": list(probes),
        "metrics": metrics,
        "keys": list(keys),
        "errors": list(errors),
        "skipped": skipped,
        "micros": exact,
        "specs": specs,
    }
    yield INDEX, json.dumps(header).encode("ascii") + b"\n" + b"".join(content)
    for probe, code in probes.items():
        yield str(code), pack(record.values for record in records if record.probe == probe and record.error is None)
