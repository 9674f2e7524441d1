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

    On the heap they leave holes that the next batch does not fit, by an amount that differs from run to run. Holes
    that are there already are held, without touching their pages, as the C library fills those before it maps anything.
    After it the threshold is where a process that has freed large tensors has it. Without a limit, and with other C
    libraries, nothing is changed: fresh pages are dear.
    """
    library = _glibc() if limit is not None else None
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
    library.mallopt(M_TRIM_THRESHOLD, 2 * OWN_MAPPING_BYTES)
    library.malloc_trim(0)
    held = _held_holes(library)
    try:
        yield
    finally:
        for address in held:
            library.free(address)
        library.mallopt(M_MMAP_THRESHOLD, USUAL_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * USUAL_BYTES)


def give_back(limit: int | None) -> None:
    """Return what small tensors left on the heap to the system, where a limit counts it."""
    if limit is not None and (library := _glibc()) is not None:
        library.malloc_trim(0)


def _held_holes(library: Any) -> list[int]:
    """Addresses of blocks that fill every hole of the heap a large tensor would be put in."""
    end, held = library.sbrk(0), []
    while address := library.malloc(OWN_MAPPING_BYTES - 2**12):  # the largest that is not mapped
        if address >= end:  # beyond the last hole
            library.free(address)
            break
        held.append(address)
    return held


@cache
def _glibc() -> Any:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim, library.mallopt  # noqa: B018  # other C libraries have them not
    except (OSError, AttributeError, TypeError):
        return None
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes, library.free.restype = [ctypes.c_void_p], None
    library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    return library
