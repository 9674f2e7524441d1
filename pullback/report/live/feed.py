"""A page that is made anew when what it shows has changed, and is else kept."""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from pullback._checks import PullbackError

EVERY = 1.0  # seconds that it rests once a page was made
LATEST = 1.6  # seconds in which a record is to be on a page that was sent, of the two in which it is to be seen
REST = 4  # times as long as the page took it rests where that cannot be: a fifth of a core goes into it then
GONE = "This run is not there any more: its folder was removed, renamed or replaced."

_making = threading.Lock()  # one page at a time, whoever asks


@dataclass(frozen=True)
class Shown:
    """A page as it stands.

    Attributes:
        version: changes with the page.
        html: the page.
        trouble: why there is no newer one, in a sentence; empty if there is none.
    """

    version: str
    html: str
    trouble: str = ""


def rest(cost: float) -> float:
    """Seconds between a page that took so many of the processor and the next, at least half of all time.

    A record that comes right after the last look is on the next page: one is finished, it rests, and one is made.
    """
    return REST * cost if 2 * cost > LATEST else max(cost, min(EVERY, LATEST - 2 * cost))


class Feed:
    """The page of one thing that changes.

    Args:
        sign: what stands for its state, cheap; raises OSError where it is gone.
        make: the page, of the version it is given.
    """

    def __init__(self, sign: Callable[[], Hashable], make: Callable[[str], str]) -> None:
        self._sign, self._make = sign, make
        self._shown: Shown | None = None
        self._state: Hashable = None
        self._next = 0.0

    def current(self) -> Shown:
        """The page of now, or of a moment ago where it takes long to make; nobody who has one waits for the next."""
        shown = self._shown
        if not _making.acquire(blocking=shown is None):
            assert shown is not None
            return shown
        try:
            return self._now()
        finally:
            _making.release()

    @property
    def resting(self) -> float:
        """Seconds for which no newer page will be made."""
        return max(0.0, self._next - time.monotonic())

    def _now(self) -> Shown:
        try:
            state = self._sign()
            is_new = state != self._state and time.monotonic() >= self._next
            return self._made(state) if is_new or self._shown is None else self._shown
        except OSError:  # also where it is removed while it is read
            return self._old(GONE)

    def _made(self, state: Hashable) -> Shown:
        start = time.thread_time()  # on a busy machine a page waits long, and costs no more
        version = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
        try:
            with warnings.catch_warnings():  # of damaged lines the page itself tells
                warnings.simplefilter("ignore")
                html = self._make(version)
        except PullbackError as error:
            return self._old(str(error))
        if self._shown is not None:  # the first one also paid for what is loaded once
            self._next = time.monotonic() + rest(time.thread_time() - start)
        self._shown, self._state = Shown(version, html), state
        return self._shown

    def _old(self, trouble: str) -> Shown:
        shown = self._shown or Shown("", "")
        self._state = None  # whatever comes next is new
        return Shown(shown.version, shown.html, trouble)
