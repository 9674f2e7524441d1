"""Captures of consecutive batches as one, without holding any of them twice."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pullback.gradients.capture.aligned import aligned
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import Factor


class Filling:
    """Factors and outputs of all samples, filled batch by batch.

    Tensors with a row or some for each sample are written to memory set aside at the start: kept in pieces and joined
    at the end they would be there twice, and leave holes. Others (token entries) are joined at the end.

    Args:
        first: capture of the first batch; not added yet.
        count: samples in all.
    """

    def __init__(self, first: Captured, count: int) -> None:
        self.first = first
        self.done = 0
        self.parts: list[list[Factor]] = [[] for _ in first.factors]
        self.buffers: list[Tensors | None] = []
        for factor in first.factors:
            tensors = factor.tensors()
            by_sample = all(t.dim() and len(t) == factor.num_samples for t in tensors.values())
            self.buffers.append(
                {k: t.new_empty(count, *t.shape[1:]) for k, t in tensors.items()} if by_sample else None
            )
        self.values: list[Tensor] = []
        self.outputs = tree_map(lambda leaf: _room(leaf, first.num_samples, count), first.outputs)
        self.ordinary: Tensors = {}
        self.probes: Tensors = {}
        self.first = replace(first, factors=tuple(_one(f) for f in first.factors), ordinary={}, probes={})

    def add(self, batch: Captured) -> None:
        """The next batch."""
        if [type(f) for f in batch.factors] != [type(f) for f in self.first.factors]:
            batch = aligned(self.first, batch)[1]
        stop = self.done + batch.num_samples
        for factor, parts, buffers in zip(batch.factors, self.parts, self.buffers, strict=True):
            if buffers is None:
                parts.append(factor)
                continue
            for name, tensor in factor.tensors().items():
                buffers[name][self.done : stop] = tensor
        leaves = zip(tree_leaves(batch.outputs), tree_leaves(self.outputs), strict=True)
        for leaf, whole in leaves:
            if isinstance(leaf, Tensor) and leaf.dim() and not len(leaf) % batch.num_samples:
                each = len(leaf) // batch.num_samples
                whole[self.done * each : stop * each] = leaf
        self.done = stop
        self.values.append(batch.values)
        for sums, new in ((self.ordinary, batch.ordinary), (self.probes, batch.probes)):
            for name, value in new.items():
                sums[name] = sums[name] + value if name in sums else value

    def whole(self) -> Captured:
        """All batches as one capture."""
        factors = [
            parts[0].joined(parts[1:]) if buffers is None else head.with_tensors(buffers)
            for head, parts, buffers in zip(self.first.factors, self.parts, self.buffers, strict=True)
        ]
        return replace(
            self.first,
            factors=tuple(factors),
            ordinary=self.ordinary,
            probes=self.probes,
            values=torch.cat(self.values),
            outputs=self.outputs,
        )


def _room(leaf: object, num_samples: int, count: int) -> object:
    """An output of all samples, not filled yet; outputs that have no rows are the first batch's."""
    if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) % num_samples:
        return leaf
    return leaf.new_empty(count * (len(leaf) // num_samples), *leaf.shape[1:])


def _one(factor: Factor) -> Factor:
    """The same factor with no more than its first sample in memory."""
    tensors = factor.tensors()
    if not all(t.dim() and len(t) == factor.num_samples for t in tensors.values()):
        return factor
    return factor.with_tensors({name: t[:1].clone() for name, t in tensors.items()})
