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

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


REMEDIES = {
    errno.ENOSPC: "Make room, then call again with the same arguments: it goes on where it stopped",
    errno.EDQUOT: "Make room, then call again with the same arguments: it goes on where it stopped",
    errno.EACCES: "Allow it to this user, or choose another path",
    errno.EPERM: "Allow it to this user, or choose another path",
    errno.EROFS: "Choose another path",
    errno.ENOTDIR: "Choose another path",
    errno.EEXIST: "Choose another path",
    errno.EISDIR: "Remove what stands there, then call again",
    errno.ENAMETOOLONG: "Choose another path",
}
KEYS = {  # what every description has
    "num_samples": int, "tile": int, "dtype": str, "layers": list, "layer_sizes": list, "num_params": int, "plan": dict,
    "piece_bytes": int, "forms": dict, "weights": dict, "params": list,
}  # fmt: skip


@contextmanager
def on_disk(where: str, what: str, path: Path) -> Iterator[None]:
    """Errors of the system, and of Zarr, as this package.s, with the way on."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error) or type(error).__name__
        remedy = REMEDIES.get(error.errno or 0, "Check the disk, then call again with the same arguments")
        raise input_error(where, f"to {what} {error.filename or path}", said, remedy) from error


def checksum(array: np.ndarray, start: int = 0) -> int:
    """CRC-32 of an array's bytes: several GB/s, and it need only find accidents."""
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, start)


class Folder:
    """The files of one store, for one worker.

    Args:
        path: the store's folder.
        rank: which worker; every worker has its own ledger and its own name for unfinished files.
        where: the caller, for error messages.
    """

    def __init__(self, path: str | Path, rank: int = 0, where: str = "open_store") -> None:
        self.path = Path(path)
        self.rank = rank
        self.where = where

    @property
    def is_store(self) -> bool:
        """Whether a store was begun here."""
        with on_disk(self.where, "look at", self.path):
            return (self.path / META_FILE).is_file()

    @property
    def is_free(self) -> bool:
        """Whether a store can be begun here without overwriting anything but one whose making was cut short."""
        with on_disk(self.where, "look into", self.path):
            if not self.path.exists():
                return True
            return self.path.is_dir() and ((self.path / DRAFT_FILE).is_file() or not any(self.path.iterdir()))

    def free_bytes(self) -> int:
        """Make the folder, and tell how much room there is."""
        with on_disk(self.where, "make the folder", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.path).free

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
        draft = self.path / DRAFT_FILE
        with on_disk(self.where, "lay out a store in", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
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

    def description(self) -> dict[str, Any]:
        """What ``create`` wrote."""
        try:
            description = json.loads((self.path / META_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise input_error(
                self.where, f"a kernel store at {self.path}", f"no readable {META_FILE} ({error})", "Check the path"
            ) from None
        stated = description.get("format") if isinstance(description, dict) else None
        if stated != FORMAT:
            expected, got = f"a store of format {FORMAT} at {self.path}", f"format {stated!r}"
            raise input_error(self.where, expected, got, "Make the store anew")
        lacking = [key for key, kind in KEYS.items() if not isinstance(description.get(key), kind)]
        if lacking or not isinstance(getattr(torch, description["dtype"], None), torch.dtype):
            got = f"none that can be read of `{(lacking or ['dtype'])[0]}`"
            raise input_error(self.where, f"a whole {META_FILE} in {self.path}", got, "Make the store anew")
        return description

    def tidy(self) -> None:
        """Remove what only an unfinished store needs."""
        shutil.rmtree(self.path / CAPTURES, ignore_errors=True)
        with on_disk(self.where, "tidy up", self.path):
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
        values = torch.empty(shape, dtype=dtype, device="cpu")
        array = values.numpy()
        read_into(self._chunk(name, index), array)
        return values if array.dtype.newbyteorder("<") == array.dtype else torch.from_numpy(array.byteswap())

    def _chunk(self, name: str, index: tuple[int, ...]) -> Path:
        return self.path.joinpath(name, "c", *map(str, index))

    def replace(self, target: Path, arrays: list[np.ndarray]) -> None:
        """Write arrays one after the other to a file that appears at once, whole."""
        draft = self.path / f"worker-{self.rank}.part"
        with on_disk(self.where, "write", target):
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
        with on_disk(self.where, "write", path):
            self._ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            content = path.read_bytes()
            os.ftruncate(self._ledger, content.rfind(b"\n") + 1)

    def record(self, entry: dict[str, Any]) -> None:
        """Append one line and have it on the disk before returning."""
        line = (json.dumps(entry, separators=(",", ":")) + "\n").encode()
        with on_disk(self.where, "write", self.path / f"ledger-{self.rank}.jsonl"):
            while line:
                line = line[os.write(self._ledger, line) :]
            os.fsync(self._ledger)

    def close(self) -> None:
        """Close the ledger; further calls do nothing."""
        if (ledger := getattr(self, "_ledger", -1)) >= 0:
            os.close(ledger)
            self._ledger = -1

    def entries(self) -> Iterator[dict[str, Any]]:
        """The lines of all workers' ledgers; a last line without its end is one that was never finished."""
        for path in sorted(self.path.glob("ledger-*.jsonl")):
            with on_disk(self.where, "read", path):
                lines = path.read_bytes().split(b"\n")[:-1]
            for number, line in enumerate(lines, 1):
                if (entry := _entry(line)) is None:
                    raise input_error(
                        self.where,
                        f"one JSON object a line in {path}, as stores write them",
                        f"line {number}, which is none",
                        "Delete that line; what it stood for is computed again",
                    )
                yield entry


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of a ledger, or None if it is not what a store writes."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("attempt"), int):
        return None
    if "block" in entry:
        kinds = {"block": int, "data": str, "template": int, "bytes": int, "crc": int, "squared_norms": list}
    elif entry.get("void"):
        kinds = {"tile": list}
    else:
        kinds = {"tile": list, "crc": int, "inner": list, "sums": list}
    return entry if all(isinstance(entry.get(key), kind) for key, kind in kinds.items()) else None


def read_into(path: Path, array: np.ndarray) -> None:
    """Fill an array with a file's bytes by plain reads.

    Raises:
        OSError: the file is not there, cannot be read, or is too short.
    """
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    with path.open("rb", buffering=0) as file:
        while len(view) and (count := file.readinto(view)):
            view = view[count:]
    if len(view):
        raise OSError(errno.EIO, f"{len(view)} bytes missing at the end", str(path))
