"""Arrays in the format of Zarr 3, written without its library, which takes 0.13 s to load and writes from a thread.

One chunk an array, little-endian, packed by gzip; folders of groups above it. The library reads them as its own.

References: zarr-specs.readthedocs.io, core version 3.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pullback.runs.folder import DRAFT

DOCUMENT = "zarr.json"
LEVEL = 1  # of compression: arrays are small, and numbers of a measurement hardly get shorter
GROUP = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def write_array(root: Path, place: str, array: np.ndarray) -> None:
    """Write one array under ``place``, in place of one that is there.

    It gets its name once it is whole: of an array without its chunks a reader would be given zeros.
    """
    final, draft = root / place, root / f"{place}{DRAFT}"
    shutil.rmtree(draft, ignore_errors=True)
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8 and array.size and array.ndim:
        _write(root, draft, array)
    else:  # texts, complex numbers, no numbers: what else there may be is the library's
        import zarr

        group = zarr.open_group(root, mode="a")
        stored = group.create_array(f"{place}{DRAFT}", shape=array.shape, dtype=array.dtype, chunks=array.shape)
        stored[...] = array
    if final.exists():
        shutil.rmtree(final)
    draft.rename(final)


def _write(root: Path, draft: Path, array: np.ndarray) -> None:
    chunk = draft.joinpath("c", *["0"] * array.ndim)
    chunk.parent.mkdir(parents=True)
    for folder in draft.relative_to(root).parents:  # the last is the root
        document = root / folder / DOCUMENT
        if not document.exists():
            document.write_text(json.dumps(GROUP), encoding="utf-8")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    chunk.write_bytes(gzip.compress(little.tobytes(), LEVEL, mtime=0))
    (draft / DOCUMENT).write_text(json.dumps(_described(array)), encoding="utf-8")


def _described(array: np.ndarray) -> dict[str, Any]:
    """Shape, kind of number and coding of an array that is one chunk."""
    return {
        "shape": array.shape,
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": array.shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": array.dtype.type(0).item(),
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": LEVEL}},
        ],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
