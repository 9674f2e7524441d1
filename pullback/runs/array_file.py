"""Arrays of a run, each in a file of NumPy's own format: ``arrays/<probe>/<step>/<name>.npy``.

Zarr, which kernels on disk are kept in, takes 0.13 s to load and 3 ms an array, where a demo's step takes as long;
runs that were written with it are still read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pullback.runs.folder import DRAFT

FOLDER = "arrays"
EARLIER_FOLDER = "arrays.zarr"  # of runs that were written before: a group <probe>/<step>/<name>


def write_array(run: Path, place: str, array: np.ndarray) -> None:
    """Write one array under ``place``, in place of one that is there; it gets its name once it is whole."""
    final = run / FOLDER / f"{place}.npy"
    draft = final.with_name(final.name + DRAFT)
    draft.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("wb") as file:
        np.save(file, array.astype(array.dtype.newbyteorder("="), copy=False), allow_pickle=False)
    draft.replace(final)


def read_array(run: Path, place: str) -> np.ndarray:
    """The array under ``place``; nothing in its file is executed.

    Raises:
        Exception: there is none, or it is damaged; a store of Zarr's fails in many ways.
    """
    file = run / FOLDER / f"{place}.npy"
    if file.exists() or not (run / EARLIER_FOLDER).is_dir():
        return np.asarray(np.load(file, allow_pickle=False))
    import zarr  # heavy: only runs that were written with it pay for it

    return np.asarray(zarr.open_group(run / EARLIER_FOLDER, mode="r")[place])


def array_steps(run: Path, probe: str, name: str) -> list[int]:
    """Steps at which an array was stored."""
    earlier = (run / EARLIER_FOLDER / probe).glob(f"*/{name}/zarr.json")
    now = (run / FOLDER / probe).glob(f"*/{name}.npy")
    steps = [file.parent.name for file in now] + [document.parent.parent.name for document in earlier]
    return sorted({int(step) for step in steps if step.isdecimal()})


def set_aside(run: Path, step: int) -> None:
    """Rename the arrays of steps beyond this one, so that no reader takes them for those of the steps made anew."""
    for arrays in (run / FOLDER, run / EARLIER_FOLDER):
        for folder in list(arrays.glob("*/*")):
            if folder.name.isdecimal() and int(folder.name) > step:
                count = len(list(folder.parent.glob(f"{folder.name}.left-*")))
                folder.rename(folder.with_name(f"{folder.name}.left-{count + 1}"))
