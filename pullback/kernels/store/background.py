"""Writing beside computing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread for reading and writing; one piece of writing may wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[Any] | None = None

    def write(self, work: Callable[..., Any], *args: Any) -> None:
        """Write in the background, after the last piece of writing is done."""
        self.wait()
        self._writing = self._pool.submit(work, *args)

    def read(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Read in the background."""
        return self._pool.submit(work, *args)

    def wait(self) -> None:
        """Until everything is written; errors of the thread are raised here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
