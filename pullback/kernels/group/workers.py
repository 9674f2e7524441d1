"""Several processes that share one piece of work: who they are, and what happens when one of them fails.

A run has workers if ``torch.distributed`` is initialised, or if ``torchrun`` set RANK and WORLD_SIZE; then it is
initialised here with gloo and shut down again. In both cases messages go through a gloo group of their own, so that
the user's backend and its timeouts are left alone. Workers exchange nothing but short texts: results are files.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pullback.kernels.group.ranks import Ranks

PATIENCE = timedelta(hours=12)  # how long a worker that is ready waits for the others; one that dies is seen at once
_MESSAGE_BYTES = 2048


class Workers(Ranks):
    """The processes of a run. One process is the same with no messages."""

    noun = "worker"

    def __init__(self, where: str, remedy: str) -> None:
        super().__init__(where, remedy)
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

    def leave(self) -> None:
        """Shut down what was started here."""
        import torch.distributed as dist

        if self._own and dist.is_initialized():
            dist.destroy_process_group()
        elif self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)

    def _meet(self, own: str) -> str:
        """Every worker tells rank 0 its error, and is told the first one."""
        if self._group is None:
            return ""
        return self._gather(own) if self.rank == 0 else self._report(own)

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
        buffer = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device="cpu")
        buffer[: len(data)] = torch.tensor(list(data), dtype=torch.uint8, device="cpu")
        dist.send(buffer, rank, group=self._group)

    def _receive(self, rank: int) -> str:
        import torch.distributed as dist

        buffer: Tensor = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8, device="cpu")
        dist.recv(buffer, rank, group=self._group)
        return bytes(buffer.tolist()).rstrip(b"\0").decode(errors="replace")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
