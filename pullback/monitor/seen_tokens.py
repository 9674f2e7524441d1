"""The tokens of every batch, counted as they come: their entropy is what a model reaches that knows no more."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**15  # tokens that wait to be counted together
MOST_OF_A_BATCH = 2**16  # of more, every second, third, ... is counted
MOST_TOKENS = 2**18  # numbers of them; those beyond count as one


class SeenTokens:
    """How often each was there since the run began, on their own device, which is never waited for.

    Labels below 0, which stand for none, do not count.

    Cost: a copy of the tokens and, some thousand at a time, an addition for each and for each number there is.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._waiting: list[Tensor] = []
        self._new = 0

    def see(self, tokens: Tensor) -> None:
        """Add a batch of whole numbers, of any shape."""
        labels = tokens.flatten()
        labels = labels[:: 1 + (len(labels) - 1) // MOST_OF_A_BATCH]
        if self._waiting and self._waiting[0].device != labels.device:
            self._count()
        self._waiting.append(labels.clone())  # the loop may write over them
        self._new += len(labels)
        if self._new >= BLOCK:
            self._count()

    def take(self) -> dict[str, float]:
        """The entropy in nats of all tokens so far, and how many that are; empty where there are none.

        That of their frequencies is too low, by (K - 1) / 2n for K numbers among n tokens: Miller (1955).
        """
        self._count()
        if self._counts is None:
            return {}
        counts = self._counts[1:]
        every, numbers = float(counts.sum()), float((counts > 0).sum())
        if not every:
            return {}
        entropy = float(torch.special.entr(counts / every).sum()) + (numbers - 1) / (2 * every)
        return {"token_entropy": entropy, "num_tokens": every}

    def _count(self) -> None:
        if not self._waiting:
            return
        labels = torch.cat([each.long() for each in self._waiting])
        self._waiting, self._new = [], 0
        on_cpu = labels.device.type == "cpu"
        width = 2 + (min(max(0, int(labels.max())), MOST_TOKENS) if on_cpu else MOST_TOKENS)
        places = labels.clamp(-1, width - 2) + 1  # the first is for labels that stand for none
        if on_cpu:
            counts = torch.bincount(places, minlength=width).double()
        else:  # there `bincount` waits for the device
            counts = torch.zeros(width, dtype=torch.float64, device=places.device)
            counts.scatter_add_(0, places, torch.ones_like(places, dtype=torch.float64))
        if self._counts is not None:
            known = self._counts.to(counts.device)
            short, long = sorted((known, counts), key=len)
            counts = long + torch.nn.functional.pad(short, (0, len(long) - len(short)))
        self._counts = counts
