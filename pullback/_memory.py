"""How much memory there is, work that needs more: refused before it begins; and memory that is given back."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from pullback._checks import input_error


def physical_bytes() -> int:
    """Memory of this machine; 16 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**34


def check_fits(where: str, what: str, needed: int, limit: int | None, remedy: str) -> None:
    """Refuse ``what`` if it needs more bytes than ``limit``, or than this machine has where that is None."""
    allowed = physical_bytes() if limit is None else limit
    if needed > allowed:
        whose = "this machine has" if limit is None else "`memory_limit` allows"
        got = f"{what}, {needed / 2**30:.3g} GiB"
        raise input_error(where, f"at most the {allowed / 2**30:.3g} GiB {whose}", got, remedy)


def give_back() -> None:
    """Hand memory that was freed back to the system, where the C library keeps it: large pieces that come and go.

    glibc keeps what is freed for the next request of the kind, between pieces that are still held; what comes later
    then finds no room there, and is laid on top. Elsewhere nothing happens.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library; TypeError: Windows has no handle of its own
        ctypes.CDLL(None).malloc_trim(0)
