"""Captures brought together: of rows and columns, of consecutive batches, of the samples of several ranks.

Factors of two captures fit together if they were written down in the same way; where they were not (another path
through the model, a batch of one), the parameters they hold become plain rows on all sides. Those that fit have the
samples of all parts one after the other in their tensors, or are joined by their kind where a tensor has no row for
each sample (token entries).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import DenseFactor, Factor


def aligned(*sides: Captured) -> list[Captured]:
    """Captures of one model with their factors in the same order and of the same kinds."""
    keys = [[(rule, *f.shapes) for f, rule in zip(side.factors, side.rules, strict=True)] for side in sides]
    return [in_order(side, own, keys) for side, own in zip(sides, keys, strict=True)]


def in_order(captured: Captured, keys: Sequence[Hashable], told: Sequence[Sequence[Hashable]]) -> Captured:
    """The capture with those factors first that all sides have, in the first side's order; plain rows of the others.

    Args:
        captured: one side.
        keys: one for each of its factors: what must be equal for two of them to fit.
        told: the keys of all sides.
    """
    by_key = {key: place for place, key in enumerate(keys)}
    kept = [by_key[key] for key in told[0] if all(key in other for other in told[1:])]
    named = {name for place in kept for name in captured.factors[place].shapes}
    rest = [rows_of(captured, name) for name in captured.view.parameters if name not in named]
    rules = (*(captured.rules[place] for place in kept), *["rows"] * len(rest))
    return replace(captured, factors=(*(captured.factors[place] for place in kept), *rest), rules=rules)


def rows_of(captured: Captured, name: str) -> Factor:
    """Plain rows of one parameter."""
    factor = next(f for f in captured.factors if name in f.shapes)
    return DenseFactor({name: factor.rows(slice(0, factor.num_samples))[name]})


def of_parts(factor: Factor, whole: Tensors, lengths: Mapping[str, Sequence[int]]) -> Factor:
    """A factor of all samples.

    Args:
        factor: of any of them.
        whole: its tensors with all parts one after the other; those without axes as they are.
        lengths: of each tensor's parts; of those without axes (a count of samples) the values.
    """
    if type(factor).joined is Factor.joined:
        return factor.with_tensors(whole)
    parts = {
        name: t.split(list(lengths[name])) if t.dim() else [torch.full_like(t, n) for n in lengths[name]]
        for name, t in whole.items()
    }
    count = len(next(iter(lengths.values())))
    each = [factor.with_tensors({name: of_part[place] for name, of_part in parts.items()}) for place in range(count)]
    return each[0].joined(each[1:])


def rows_each(leaf: Any, num_samples: int) -> int | None:
    """Rows of an output for each sample; None if it has no axis of samples."""
    if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) % num_samples:
        return None
    return len(leaf) // num_samples


def emptied(captured: Captured) -> Captured:
    """The same capture with no samples: it still shows how factors are built."""
    factors = tuple(
        f.with_tensors({name: t[:0] if t.dim() else torch.zeros_like(t) for name, t in f.tensors().items()})
        for f in captured.factors
    )
    return replace(captured, factors=factors, values=captured.values[:0], ordinary={}, probes={}, floors=())


def without_rows(captured: Captured) -> Captured:
    """No samples, in plain rows, of which nothing has to be formed."""
    C = captured.num_outputs
    none = (
        DenseFactor({name: factor.like.new_zeros(0, C, *shape) for name, shape in factor.shapes.items()})
        for factor in captured.factors
    )
    return replace(captured, factors=tuple(none))


class Filling:
    """Factors and outputs of all samples, filled batch by batch, without holding any of them twice.

    Tensors with a row for each sample are written to memory set aside at the start: kept in pieces and joined at the
    end they would be there twice, and leave holes. Others (token entries) are joined at the end.

    Args:
        first: capture of the first batch; not added yet.
        count: samples in all.
    """

    def __init__(self, first: Captured, count: int) -> None:
        self.done = 0
        self.parts: list[list[Factor]] = [[] for _ in first.factors]
        self.buffers: list[Tensors | None] = [
            {k: t.new_empty(count, *t.shape[1:]) for k, t in f.tensors().items()} if _by_sample(f) else None
            for f in first.factors
        ]
        self.values: list[Tensor] = []
        self.outputs = tree_map(lambda leaf: _room(leaf, first.num_samples, count), first.outputs)
        self.ordinary: Tensors = {}
        self.probes: Tensors = {}
        self.floors: tuple[Callable[[], float], ...] = ()
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
            if each := rows_each(leaf, batch.num_samples):
                whole[self.done * each : stop * each] = leaf
        self.done = stop
        self.values.append(batch.values)
        for sums, new in ((self.ordinary, batch.ordinary), (self.probes, batch.probes)):
            for name, value in new.items():
                sums[name] = sums[name] + value if name in sums else value
        self.floors += batch.floors

    def captured(self) -> Captured:
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
            floors=self.floors,
        )


def _by_sample(factor: Factor) -> bool:
    """Whether every tensor of a factor has a row for each sample."""
    return all(t.dim() and len(t) == factor.num_samples for t in factor.tensors().values())


def _room(leaf: object, num_samples: int, count: int) -> object:
    """An output of all samples, not filled yet; outputs that have no rows are the first batch's."""
    each = rows_each(leaf, num_samples)
    return leaf if each is None else leaf.new_empty(count * each, *leaf.shape[1:])  # type: ignore[attr-defined]


def _one(factor: Factor) -> Factor:
    """The same factor with no more than its first sample in memory."""
    if not _by_sample(factor):
        return factor
    return factor.with_tensors({name: t[:1].clone() for name, t in factor.tensors().items()})
