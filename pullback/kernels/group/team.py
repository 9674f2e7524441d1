"""The processes of a ``torch.distributed`` group: how they agree, add up and gather tensors.

Every collective stands between two phases (see ``Ranks``), so that an exception in one rank leaves none waiting in it.
Only texts and plain tensors are exchanged; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pullback._checks import input_error
from pullback.kernels.group.ranks import Ranks

_REMEDY = "Repair the cause and make the same call on every rank"


class Team(Ranks):
    """The ranks of a group, ``count`` of them, this process being ``rank``.

    Args:
        group: a ProcessGroup this process belongs to, or "world".
        where: the caller, for error messages.

    Raises:
        InputError: torch.distributed is not initialised, or this process is not in the group.
    """

    def __init__(self, group: Any, where: str) -> None:
        super().__init__(where, _REMEDY)
        if not dist.is_available() or not dist.is_initialized():
            raise input_error(
                where,
                "torch.distributed to be initialised, as `group` was given",
                "a process on its own",
                "Start the ranks with torchrun and call torch.distributed.init_process_group, or leave `group` out",
            )
        if isinstance(group, str) and group == "world":
            group = dist.group.WORLD
        elif not isinstance(group, dist.ProcessGroup):
            outside = group is dist.GroupMember.NON_GROUP_MEMBER
            got = "the group of other ranks" if outside else f"{group!r}"
            expected = '`group` to be None, "world" or a ProcessGroup this rank belongs to'
            raise input_error(where, expected, got, "Make the call on the ranks of the group only")
        self._group: Any = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        backends = dist.get_backend_config(group)
        self.devices = [pair.partition(":")[0] for pair in str(backends).split(",")]  # "cpu:gloo,cuda:nccl"
        self._words = torch.device("cpu" if "cpu" in self.devices else self.devices[0])

    def _meet(self, own: str) -> str:
        wrong = [(rank, text) for rank, text in enumerate(self.texts(own)) if text]
        return f"an error in rank {wrong[0][0]}: {wrong[0][1].rstrip('.')}" if wrong else ""

    def texts(self, own: str) -> list[str]:
        """One text from every rank, in the order of ranks."""
        data = torch.from_numpy(np.frombuffer(own.encode(), dtype=np.uint8).copy()).to(self._words)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._words) for _ in range(self.count)]
        with self._exchange():
            dist.all_gather(sizes, torch.tensor([len(data)], device=self._words), group=self._group)
        lengths = [int(size) for size in sizes]
        whole = self.gathered(data, lengths)
        return [bytes(part.cpu().numpy()).decode(errors="replace") for part in whole.split(lengths)]

    def gathered(self, own: Tensor, sizes: Sequence[int], out: Tensor | None = None) -> Tensor:
        """Tensors (n_r, ...) of all ranks r one after the other, (sum of n, ...), in ``out`` if it is given.

        Every rank's part is broadcast to its place: no padding where the parts differ, and no copy of the whole.
        """
        whole = own.new_empty((sum(sizes), *own.shape[1:])) if out is None else out
        start = 0
        for rank, size in enumerate(sizes):
            part = whole[start : start + size]
            start += size
            if rank == self.rank:
                part.copy_(own)
            if part.numel():
                with self._exchange():
                    dist.broadcast(part, dist.get_global_rank(self._group, rank), group=self._group)
        return whole

    def exchanged(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Vectors (n_r,) of all ranks r in one exchange, padded to the longest; for parts of about one size."""
        longest = max(sizes)
        if self.count == 1 or not longest:
            return [own] * self.count
        padded = own if len(own) == longest else torch.cat([own, own.new_zeros(longest - len(own))])
        received = own.new_empty(self.count, longest)
        with self._exchange():
            dist.all_gather(list(received), padded, group=self._group)
        return [part[:size] for part, size in zip(received, sizes, strict=True)]

    def added(self, own: Tensor) -> Tensor:
        """Sum over ranks of a vector (n,), the same to the bit everywhere: each stretch is added up by one rank.

        Bytes: each rank sends and receives 2 (1 - 1 / ranks) times the vector, the least a sum can cost.
        """
        if self.count == 1 or not own.numel():
            return own
        size = -(-len(own) // self.count)
        padded = torch.cat([own, own.new_zeros(size * self.count - len(own))])
        parts = torch.empty_like(padded)
        with self._exchange():
            dist.all_to_all_single(parts, padded, group=self._group)
        stretch = parts.view(self.count, size).sum(0)
        with self._exchange():
            dist.all_gather(list(padded.view(self.count, size)), stretch, group=self._group)
        return padded[: len(own)]

    def sums(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Sums over ranks of tensors of any shapes, one exchange a dtype."""
        sums_of: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(t.dtype for t in own):
            places = [place for place, t in enumerate(own) if t.dtype == dtype]
            whole = self.added(torch.cat([own[place].reshape(-1) for place in places]))
            parts = whole.split([own[place].numel() for place in places])
            sums_of |= {place: part.view(own[place].shape) for place, part in zip(places, parts, strict=True)}
        return [sums_of[place] for place in range(len(own))]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Name a lost rank: the backend's own words are about sockets."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).strip().split("\n")[0][:200].rstrip(".")
            got = f"a broken exchange in rank {self.rank} ({first})"
            raise self.left_alone("to take part", got) from error
