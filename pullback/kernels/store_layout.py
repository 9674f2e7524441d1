"""What a store is on disk: Zarr arrays written chunk by chunk, ledgers of what is finished, and the description.

    store.json              description; a folder is a store once this file stands
    zarr.json               makes the folder a Zarr v3 group
    total/                  (N, N), one chunk a tile, only tiles on and below the diagonal; the others read as NaN
    diagonal/               (L, N), squared gradient norms by layer
    losses/                 (N,)
    ledger-<rank>.jsonl     one line for every finished block and tile, with its checksum
    captures/               gradient factors of each block, removed when the store is finished

Chunks are not compressed (the mantissas of a kernel are as good as random), so a chunk file is the numbers
themselves; they are written under another name and renamed, and the ledger's line follows. Whatever moment a process
dies at, a tile is either in the ledger with the bytes it names, or computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error

FORMAT = 1
META_FILE = "store.json"
DRAFT_FILE = META_FILE + ".part"
CAPTURES = "captures"


def checksum(array: np.ndarray, start: int = 0) -> int:
    """CRC-32 of an array's bytes: several GB/s, and it need only find accidents."""
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, start)


class Folder:
    """The files of one store, for one worker.

    Args:
        path: the store's folder.
        rank: which worker; every worker has its own ledger and its own name for unfinished files.
    """

    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.path = Path(path)
        self.rank = rank

    @property
    def is_store(self) -> bool:
        """Whether a store was begun here."""
        return (self.path / META_FILE).is_file()

    @property
    def is_free(self) -> bool:
        """Whether a store can be begun here without overwriting anything but one whose making was cut short."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and ((self.path / DRAFT_FILE).is_file() or not any(self.path.iterdir()))

    def create(self, description: dict[str, Any]) -> None:
        """Lay out an empty store.

        The description's draft goes first and gets its name last: a folder with a draft is one whose making was cut
        short, and is made anew.
        """
        import zarr  # heavy: only stores pay for it

        count, tile, layers = (description[key] for key in ("num_samples", "tile", "layers"))
        arrays = {
            "total": ((count, count), (tile, tile)),
            "diagonal": ((len(layers), count), (len(layers), tile)),
            "losses": ((count,), (tile,)),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / DRAFT_FILE
        draft.write_text(json.dumps(description, indent=1), encoding="utf-8")
        (self.path / CAPTURES).mkdir(exist_ok=True)
        group = zarr.open_group(self.path, mode="a", zarr_format=3)
        for name, (shape, chunks) in arrays.items():
            group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=description["dtype"],
                compressors=None,
                filters=None,
                fill_value=float("nan"),
                overwrite=True,
            )
        draft.replace(self.path / META_FILE)

    def description(self, where: str) -> dict[str, Any]:
        """What ``create`` wrote."""
        try:
            description = json.loads((self.path / META_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise input_error(
                where, f"a kernel store at {self.path}", f"no readable {META_FILE} ({error})", "Check the path"
            ) from None
        if description.get("format") != FORMAT:
            raise input_error(
                where, f"a store of format {FORMAT}", f"format {description.get('format')!r}", "Make the store anew"
            )
        return description

    def tidy(self) -> None:
        """Remove what only an unfinished store needs."""
        shutil.rmtree(self.path / CAPTURES, ignore_errors=True)
        for draft in self.path.glob("worker-*.part"):
            draft.unlink(missing_ok=True)

    # Chunks

    def write_chunk(self, name: str, index: tuple[int, ...], values: Tensor, shape: tuple[int, ...]) -> int:
        """Write one chunk, padded with zeros to the full ``shape`` at the array's edge; its checksum."""
        if tuple(values.shape) != shape:
            padded = values.new_zeros(shape)
            padded[tuple(slice(0, n) for n in values.shape)] = values
            values = padded
        array = values.contiguous().numpy()
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)  # the order the array's description states
        self.replace(self._chunk(name, index), [array])
        return checksum(array)

    def read_chunk(self, name: str, index: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Read one whole chunk, padding and all."""
        values = torch.empty(shape, dtype=dtype)
        array = values.numpy()
        read_into(self._chunk(name, index), array)
        return values if array.dtype.newbyteorder("<") == array.dtype else torch.from_numpy(array.byteswap())

    def _chunk(self, name: str, index: tuple[int, ...]) -> Path:
        return self.path.joinpath(name, "c", *map(str, index))

    def replace(self, target: Path, arrays: list[np.ndarray]) -> None:
        """Write arrays one after the other to a file that appears at once, whole."""
        draft = self.path / f"worker-{self.rank}.part"
        with draft.open("wb", buffering=0) as file:
            for array in arrays:
                view = array.reshape(-1).view(np.uint8).data
                while len(view):
                    view = view[file.write(view) :]
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(target)

    # Ledgers

    def open_ledger(self) -> None:
        """Make this worker's ledger ready to be appended to, without the line a killed process tore."""
        path = self.path / f"ledger-{self.rank}.jsonl"
        self._ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        os.ftruncate(self._ledger, content.rfind(b"\n") + 1)

    def record(self, entry: dict[str, Any]) -> None:
        """Append one line and have it on the disk before returning."""
        line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
        while line:
            line = line[os.write(self._ledger, line) :]
        os.fsync(self._ledger)

    def close(self) -> None:
        """Close the ledger; further calls do nothing."""
        if (ledger := getattr(self, "_ledger", -1)) >= 0:
            os.close(ledger)
            self._ledger = -1

    def entries(self, where: str) -> Iterator[dict[str, Any]]:
        """The lines of all workers' ledgers; a last line without its end is one that was never finished."""
        for path in sorted(self.path.glob("ledger-*.jsonl")):
            lines = path.read_bytes().split(b"\n")[:-1]
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise input_error(
                        where,
                        f"one JSON object a line in {path}",
                        f"line {number}, which is none",
                        "Delete that line; what it stood for is computed again",
                    ) from None


def read_into(path: Path, array: np.ndarray) -> None:
    """Fill an array with a file's bytes by plain reads; a file too short leaves the rest zero."""
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    with path.open("rb", buffering=0) as file:
        while len(view) and (count := file.readinto(view)):
            view = view[count:]
    if len(view):
        view[:] = bytes(len(view))
