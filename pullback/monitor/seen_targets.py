"""The targets of every batch, counted as they come: how often each class, and how far batches lie apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.functional.batch import Batch, tensors
from pullback.monitor.probes.targets import MOST_CLASSES, MOST_OUTPUTS
from pullback.monitor.seen_tokens import SeenTokens

BLOCK = 64  # batches whose labels wait to be counted together: one by one counting takes longer than the labels do
MOST_WAITING = 2**16  # labels, at most


class SeenTargets:
    """Sums over the batches since they were last taken; on the targets' own device, which is never waited for.

    Of classes (N,) the counts, and over the batches the sums of squared counts over the batch's size: chi-squared is a
    sum of these. Of numbers the sums of an analysis of variance. Of tokens, and other labels (N, ...), their entropy
    since the run began. Nothing of several targets.

    Cost: an addition for each target, and of few numbers more. Labels are copied, and counted some batches at a time.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._kind: tuple[Any, ...] = ()
        self._tokens = SeenTokens()
        self._labels: list[Tensor] = []  # of batches that are not counted yet
        self._batches = self._samples = self._waiting = 0

    def see(self, y: Batch) -> None:
        """Add a batch; what is no batch of targets is passed over."""
        leaves = list(tensors(y)) if y is not None else []
        if len(leaves) != 1 or leaves[0].dim() == 0 or leaves[0].is_complex():
            return
        t = leaves[0].detach()
        count, classes = t.shape[0], not t.is_floating_point()
        if not t.numel():
            return
        if classes and t.numel() != count:
            self._tokens.see(t)
            return
        kind = (classes, t.device, () if classes else t.shape[1:])
        if kind != self._kind:
            self._kind, self._sums, self._batches, self._samples = kind, {}, 0, 0
            self._labels, self._waiting = [], 0
        self._batches += 1
        self._samples += count
        if not classes:
            self._add(_of_numbers(t))
            return
        self._labels.append(t.clone())  # the loop may write over them
        self._waiting += count
        if len(self._labels) >= BLOCK or self._waiting >= MOST_WAITING:
            self._count()

    def _add(self, counts: dict[str, Tensor]) -> None:
        for name, value in counts.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _count(self) -> None:
        """Count the labels that wait."""
        if self._labels:
            self._add(_of_classes(self._labels))
        self._labels, self._waiting = [], 0

    def take(self) -> dict[str, Any]:
        """The sums so far, and start anew; empty where there are none, or too many classes."""
        self._count()
        sums, batches, samples = self._sums, self._batches, self._samples
        self._sums, self._batches, self._samples = {}, 0, 0
        if not batches:
            return self._tokens.take()
        known = {"batches": batches, "num_samples": samples}
        if "counts" not in sums:
            return known | {name: value.tolist() for name, value in sums.items()}
        counts, squares = sums["counts"].tolist(), sums["squares"].tolist()
        if counts[0] or counts[-1]:
            return {}  # labels that stand for none, or a vocabulary
        there = [label for label in range(MOST_CLASSES) if counts[label + 1]]
        return known | {
            "counts": {str(label): int(counts[label + 1]) for label in there},
            "squares": {str(label): squares[label + 1] for label in there},
        }


def _of_classes(batches: list[Tensor]) -> dict[str, Tensor]:
    """(MOST_CLASSES + 2,): the first place is for labels below 0, the last for those beyond."""
    places, width = (
        torch.cat([labels.flatten() for labels in batches]).long().clamp(-1, MOST_CLASSES) + 1,
        MOST_CLASSES + 2,
    )
    sizes = torch.tensor([len(each) for each in batches], device="cpu")
    places += (torch.arange(len(batches), device="cpu") * width).repeat_interleave(sizes).to(places.device)
    if places.device.type == "cpu":
        counts = torch.bincount(places, minlength=len(batches) * width).double()
    else:  # there `bincount` waits for the device
        counts = torch.zeros(len(batches) * width, dtype=torch.float64, device=places.device)
        counts.scatter_add_(0, places, torch.ones_like(places, dtype=torch.float64))
    counts = counts.reshape(len(batches), width)
    return {"counts": counts.sum(0), "squares": (counts**2 / sizes.to(counts).unsqueeze(1)).sum(0)}


def _of_numbers(t: Tensor) -> dict[str, Tensor]:
    """Of each output, up to a few, the sum, that of squares, and the squared sum over the batch's size."""
    rows = t.flatten(1).double() if t.dim() > 1 else t.double().unsqueeze(1)
    rows = rows if rows.shape[1] <= MOST_OUTPUTS else rows.mean(1, keepdim=True)
    sums = rows.sum(0)
    return {"sums": sums, "square_sums": (rows**2).sum(0), "squared_sums": sums**2 / len(t)}
