"""Appends to a run folder. Every record is one write of one line, so a killed process tears at most the last."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pullback._checks import input_error
from pullback.runs.schema import ARRAYS_FOLDER, META_FILE, RECORDS_FILE, SCHEMA_VERSION, encode


class RunWriter:
    """The one writer of a run folder.

    Args:
        path: the folder; made if it does not exist.
        meta: what is known about the run before it starts (model, optimizer, settings), JSON-serialisable.

    Raises:
        InputError: the folder already holds a run, or anything else: nothing is overwritten.

    Example:
        >>> import tempfile
        >>> from pullback.runs import load_run
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with RunWriter(folder, {}) as writer:
        ...     writer.append(0, "loss", {"loss": 2.5})
        >>> load_run(folder).series("loss", "loss")
        ([0], [2.5])
    """

    def __init__(self, path: str | Path, meta: dict[str, Any]) -> None:
        self.path = Path(path)
        check_free(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        document = {"schema": SCHEMA_VERSION, "created": created, **encode(meta)}
        draft = self.path / (META_FILE + ".part")
        draft.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        self._records = os.open(self.path / RECORDS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        draft.replace(self.path / META_FILE)  # a folder is a run once this file stands
        self._start = time.perf_counter()
        self._arrays: Any = None

    def append(self, step: int, probe: str, values: dict[str, Any]) -> None:
        """Append the numbers one probe measured at one step."""
        self._write({"step": step, "probe": probe, "values": encode(values)})

    def append_error(self, step: int, probe: str, error: BaseException) -> None:
        """Append that a probe failed, and why."""
        self._write({"step": step, "probe": probe, "error": f"{type(error).__name__}: {error}"})

    def write_array(self, step: int, probe: str, name: str, array: np.ndarray) -> None:
        """Write one array under ``<probe>/<step>/<name>``."""
        if self._arrays is None:
            import zarr  # heavy: only runs that store arrays pay for it

            self._arrays = zarr.open_group(self.path / ARRAYS_FOLDER, mode="a")
        stored = self._arrays.create_array(
            f"{probe}/{step}/{name}", shape=array.shape, dtype=array.dtype, chunks=array.shape
        )
        stored[...] = array

    def _write(self, record: dict[str, Any]) -> None:
        record["time"] = round(time.perf_counter() - self._start, 6)
        line = json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n"
        os.write(self._records, line.encode("utf-8"))

    def close(self) -> None:
        """Push what was written to the disk; further calls do nothing."""
        if self._records >= 0:
            os.fsync(self._records)
            os.close(self._records)
            self._records = -1

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_free(path: Path, remedy: str = "Choose another folder, or remove this one yourself") -> None:
    """Refuse a path that is already taken."""
    if path.is_dir() and any(path.iterdir()):
        what = "one that holds a run" if (path / META_FILE).exists() else "one that is not empty"
        raise input_error(f"run folder {path}", "an empty or new folder", what, remedy)
    if path.exists() and not path.is_dir():
        raise input_error(f"run folder {path}", "an empty or new folder", "a file", remedy)
