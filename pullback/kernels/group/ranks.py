"""Processes that do one piece of work together: who they are, what falls to whom, and that an error in one ends all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from pullback._checks import PullbackError, sentence
from pullback.gradients.rows.pieces import share_of

Item = TypeVar("Item")


class WorkerError(PullbackError, RuntimeError):
    """Another process of this run failed or died."""


class Ranks(ABC):
    """``count`` processes, this one being ``rank``. An exception in one must not leave the others waiting for it.

    So all local work is done in a ``phase``, at whose end they meet: the ranks of a group (``Team``) by the collectives
    that also carry their tensors; the workers of a store (``Workers``), which may be busy for hours and exchange little
    else, by messages that show at once that one has died.

    Args:
        where: the caller, for error messages.
        remedy: what to do when one fails.
    """

    noun = "rank"

    def __init__(self, where: str, remedy: str) -> None:
        self.where, self.remedy = where, remedy
        self.rank, self.count = 0, 1

    @abstractmethod
    def _meet(self, own: str) -> str:
        """Wait for all, tell them one's own error ("" for none), and return that of the first that failed."""

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Local work at whose end all meet; an error in one is an error in all of them."""
        failed: Exception | BaseException | None = None
        try:
            yield
        except WorkerError:  # they no longer hear each other
            raise
        except BaseException as error:
            failed = error
        try:
            verdict = self._meet("" if failed is None else f"{type(failed).__name__}: {failed}")
        except WorkerError as lost:
            if failed is not None:
                raise failed from lost
            raise
        if failed is not None:
            if self.count > 1:
                failed.add_note(f"{self.where}: this was {self.noun} {self.rank} of {self.count}.")
            raise failed
        if verdict:
            raise self.left_alone("to finish", verdict)

    def left_alone(self, expected: str, got: str) -> WorkerError:
        """The error for another one that failed, or is gone."""
        return WorkerError(sentence(self.where, f"all {self.count} {self.noun}s {expected}", got, self.remedy))

    def stretch(self, count: int) -> slice:
        """Consecutive ones of ``count`` that are this one's; may be empty."""
        return share_of(count, self.rank, self.count)

    def share(self, items: Sequence[Item], costs: Sequence[float]) -> list[Item]:
        """This one's stretch of the items, all stretches costing about the same."""
        whole, before, mine = sum(costs), 0.0, []
        for item, cost in zip(items, costs, strict=True):
            middle = (before + cost / 2) / whole
            if int(middle * self.count) == self.rank:
                mine.append(item)
            before += cost
        return mine
