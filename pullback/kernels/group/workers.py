"""Several processes that share one piece of work: who they are, and what happens when one of them fails.

A run has workers if ``torch.distributed`` is initialised, or if ``torchrun`` set RANK and WORLD_SIZE; then it is
initialised here with gloo and shut down again. In both cases messages go through a gloo group of their own, so that
the user's backend and its timeouts are left alone. Workers exchange nothing but short texts: results are files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback._checks import PullbackError, sentence

PATIENCE = timedelta(hours=12)  # how long a worker that is ready waits for the others; one that dies is seen at once
_MESSAGE_BYTES = 2048

Item = TypeVar("Item")


class WorkerError(PullbackError, RuntimeError):
    """Another process of this run failed or died."""


class Workers:
    """The processes of a run: ``count`` of them, this one being ``rank``. One process is the same with no messages.

    Args:
        where: the caller, for error messages.
        remedy: what to do when a worker fails.
    """

    def __init__(self, where: str, remedy: str) -> None:
        self.where, self.remedy = where, remedy
        self.rank, self.count = 0, 1
        self._group: Any = None
        self._own = False
        import torch.distributed as dist

        if not dist.is_available():
            return
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
            dist.init_process_group("gloo")
            self._own = True
        if dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
        if self.count > 1:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @contextmanager
    def phase(self) -> Iterator[None]:
        """A stretch of work at whose end all workers meet; an error in one is an error in all of them."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, WorkerError):
                self._meet(f"{type(error).__name__}: {error}", quiet=True)
            raise
        self._meet("")

    def share(self, items: Sequence[Item], costs: Sequence[float]) -> list[Item]:
        """This worker's stretch of the items, all stretches costing about the same."""
        whole, before, mine = sum(costs), 0.0, []
        for item, cost in zip(items, costs, strict=True):
            middle = (before + cost / 2) / whole
            if int(middle * self.count) == self.rank:
                mine.append(item)
            before += cost
        return mine

    def leave(self) -> None:
        """Shut down what was started here."""
        import torch.distributed as dist

        if self._own and dist.is_initialized():
            dist.destroy_process_group()
        elif self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _meet(self, message: str, *, quiet: bool = False) -> None:
        """Wait for all workers and compare notes: every worker tells rank 0 its error, and is told the first one."""
        if self._group is None:
            return
        verdict = self._gather(message) if self.rank == 0 else self._report(message)
        if verdict and not quiet:
            raise WorkerError(sentence(self.where, f"all {self.count} workers to finish", verdict, self.remedy))

    def _gather(self, own: str) -> str:
        verdict, alive = own and f"an error in worker 0: {own}", []
        for rank in range(1, self.count):
            try:
                said = self._receive(rank)
                alive.append(rank)
            except RuntimeError as error:
                said = ""
                verdict = verdict or f"worker {rank} gone ({_first_line(error)})"
            if said and not verdict:
                verdict = f"an error in worker {rank}: {said}"
        for rank in alive:
            try:
                self._send(verdict, rank)
            except RuntimeError as error:
                verdict = verdict or f"worker {rank} gone ({_first_line(error)})"
        return verdict

    def _report(self, message: str) -> str:
        try:
            self._send(message, 0)
            return self._receive(0)
        except RuntimeError as error:
            return f"worker 0 gone ({_first_line(error)})"

    def _send(self, text: str, rank: int) -> None:
        import torch.distributed as dist

        data = text.encode()[:_MESSAGE_BYTES]
        buffer = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        buffer[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        dist.send(buffer, rank, group=self._group)

    def _receive(self, rank: int) -> str:
        import torch.distributed as dist

        buffer: Tensor = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        dist.recv(buffer, rank, group=self._group)
        return bytes(buffer.tolist()).rstrip(b"\0").decode(errors="replace")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
