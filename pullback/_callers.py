"""Whose line a warning is about: the user's, not one of this package."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(__file__).parent)


def users_level() -> int:
    """The ``stacklevel`` with which ``warnings.warn`` points to the line of the user that led to its caller.

    That is the innermost one outside this package and outside what is installed beside it: a trainer that calls the
    package for its user is none. Where all is installed, the innermost outside this package.
    """
    levels = list(enumerate(_outwards(sys._getframe(1)), start=1))
    outside = [(level, file) for level, file in levels if not _is_of(file, PACKAGE) and file != contextlib.__file__]
    own = [level for level, file in outside if not _is_installed(file)]
    return next(iter(own or [level for level, _ in outside]), 1)


def _outwards(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def _is_of(file: str, folder: str) -> bool:
    return Path(folder) in Path(file).parents


def _is_installed(file: str) -> bool:
    return any(part.endswith("-packages") for part in Path(file).parts)
