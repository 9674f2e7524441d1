"""Products J v with the derivative of what a graph ends in, by backward passes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.functional.differentiable import first_line, lacks_derivative, refuse_unreliable, say_by_rows
from pullback.operators.flat_derivatives import derivative


class Push:
    """Derivative of ``values`` in ``inputs``, times vectors.

    J v is the derivative along v of J^T u, which is linear in a dummy u (the double backward pass). An operation whose
    backward pass cannot be differentiated, or does not show what it depends on, leaves the rows of J: then J v takes
    a backward pass for every number in ``values``.

    Args:
        values: what is differentiated; its graph is kept.
        inputs: in what.
        where: the caller, for messages.

    Attributes:
        by_rows: whether products are made from the rows.
    """

    def __init__(self, values: Sequence[Tensor], inputs: Sequence[Tensor], where: str) -> None:
        self.values, self.inputs, self.where = values, inputs, where
        self.by_rows = False
        self.dummies = [torch.zeros_like(value, requires_grad=True) for value in values]
        self.pulled: Sequence[Tensor | None] = [None] * len(inputs)
        if values:
            refuse_unreliable(values, where)
            self.pulled = torch.autograd.grad(values, inputs, self.dummies, create_graph=True, allow_unused=True)

    def __call__(self, vectors: Sequence[Tensor | None], batched: bool) -> list[Tensor | None]:
        """J v, one tensor for each of the values; with ``batched`` of vectors (K, *shape)."""
        moving = [
            (end, at, v)
            for end, at, v in zip(self.pulled, self.inputs, vectors, strict=True)
            if end is not None and v is not None
        ]
        ends, inputs, along = [m[0] for m in moving], [m[1] for m in moving], [m[2] for m in moving]
        if not self.by_rows:
            try:
                return derivative(ends, self.dummies, along, batched)
            except RuntimeError as error:
                if not lacks_derivative(error):
                    raise
                self._leave(first_line(error))
        return self._from_rows(inputs, along, batched) if moving else [None] * len(self.values)

    def confirm(self) -> None:
        """Compare u^T (J v) with (J^T u)^T v for random u and v; where they differ, products go by rows."""
        make = torch.Generator().manual_seed(0)

        def drawn(like: Any) -> list[Tensor]:
            return [torch.randn(t.shape, generator=make, dtype=torch.float64, device=make.device).to(t) for t in like]

        u, v = drawn(self.values), drawn(self.inputs)
        forward = [torch.zeros_like(a) if c is None else c for a, c in zip(self.values, self(v, False), strict=True)]
        back = derivative(self.values, self.inputs, u, False)
        pairs = [(g, b) for g, b in zip(back, v, strict=True) if g is not None]
        left = torch.stack([(a.double() * c.double()).sum() for a, c in zip(u, forward, strict=True)])
        right = torch.stack([(g.double() * b.double()).sum() for g, b in pairs] or [left.new_zeros(())])
        sizes = _norm(u) * _norm(forward) + _norm([g for g, _ in pairs]) * _norm(v)
        if abs(float(left.sum() - right.sum())) > torch.finfo(self.values[0].dtype).eps ** 0.5 * sizes:
            self._leave("an operation's backward pass hides what it depends on")

    def _leave(self, reason: str) -> None:
        say_by_rows(self.where, reason)
        self.by_rows = True

    def _from_rows(self, inputs: list[Tensor], along: list[Tensor], batched: bool) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for value in self.values:
            entries = []
            for place in range(value.numel()):
                unit = torch.zeros_like(value, requires_grad=False)
                unit.view(-1)[place] = 1
                row = torch.autograd.grad(value, inputs, unit, retain_graph=True, materialize_grads=True)
                pairs = zip(along, row, strict=True)
                entries.append(torch.stack([v.flatten(int(batched)) @ r.reshape(-1) for v, r in pairs]).sum(0))
            found.append(torch.stack(entries, -1).view(*entries[0].shape, *value.shape))
        return found


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([p.double().square().sum() for p in parts]).sum().sqrt()) if parts else 0.0
