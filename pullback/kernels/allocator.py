"""What the C library does with freed memory, where a limit counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
OWN_MAPPING_BYTES = (
    2**20
)  # tensors from here on get pages of their own under a limit, which go back when they are freed
USUAL_BYTES = 2**25  # where glibc's own moving threshold ends once a tensor of that size has been freed


@contextmanager
def freed_at_once(limit: int | None) -> Iterator[None]:
    """While a limit counts: large tensors lie in pages of their own.

    On the heap they leave holes that the next batch does not fit, by an amount that differs from run to run. After it
    the threshold is where a process that has freed large tensors has it. Without a limit, and with other C libraries,
    nothing is changed: fresh pages are dear.
    """
    library = _glibc() if limit is not None else None
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    library.malloc_trim(0)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BYTES)


def give_back(limit: int | None) -> None:
    """Return what small tensors left on the heap to the system, where a limit counts it."""
    if limit is not None and (library := _glibc()) is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim, library.mallopt  # noqa: B018  # other C libraries have them not
    except (OSError, AttributeError, TypeError):
        return None
    return library
