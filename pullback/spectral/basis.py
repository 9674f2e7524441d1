"""A growing orthonormal basis and the matrix of the operator in it: block Lanczos with thick restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_asymmetry, check_finite, gaussian, product, work_dtype
from pullback.spectral.sums import inner_products, lengths


class Basis:
    """Rows V with A V^T = V^T T + (pending block)^T K, and T = V A V^T formed from all inner products.

    Args:
        op: a symmetric operator (n, n).
        capacity: rows held before ``restart`` must be called.
        block: columns of one product.
        generator: of all random vectors.
        start: first columns (n, any number up to ``block``); the others are random.
        where: the caller, for errors.
    """

    def __init__(
        self,
        op: Operator,
        capacity: int,
        block: int,
        generator: torch.Generator,
        start: Tensor | None,
        where: str,
    ) -> None:
        self.op, self.block, self.generator, self.where = op, block, generator, where
        n = op.shape[0]
        self.rows = torch.empty(min(n, capacity + block), n, dtype=work_dtype(op), device=op.device)
        self.capacity = min(n, capacity)
        self.matrix = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64, device="cpu")  # T
        self.size = 0  # rows of V
        self.pending = 0  # rows after V, whose products are not taken yet
        self.coupling = torch.zeros(0, 0, dtype=torch.float64, device="cpu")  # K, (pending, size)
        self.dropped = 0.0  # size of what a fresh restart left out of K
        self.scale = 0.0  # largest entry of T so far
        self.num_matvecs = 0
        self._undrawn = 0  # random columns that the generator stands before, as every start has its own
        self._append(self._first(start))

    def _first(self, start: Tensor | None) -> Tensor:
        """The first columns, (n, block): what is given, and random ones beside it."""
        n = self.op.shape[0]
        count = min(self.block, n)
        given = None if start is None else start.detach().reshape(n, -1)[:, :count]
        if given is not None and given.shape[1] == count:
            self._undrawn = count  # nothing random is asked for yet, and of a long vector it would take long
            return given.to(self.rows, copy=True)
        first = gaussian(n, count, self.generator, self.op)
        if given is not None:
            first[:, : given.shape[1]] = given
        return first

    @property
    def spans_all(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size == self.op.shape[0]

    def extend(self) -> None:
        """Take the products of the pending block into T, and find the next block."""
        old, new = self.size, self.size + self.pending
        block = product(self.op, self.rows[old:new].T)
        check_finite(block, self.where)
        self.num_matvecs += self.pending
        inner = torch.zeros(new, new - old, dtype=torch.float64, device="cpu")
        # twice is enough (Parlett): first against the rows A couples to, where all that is large cancels, then against
        # all; where that takes out more than a tenth, rounding in V would grow, and it is done again
        coupled = torch.nan_to_num(self.coupling).any(0).nonzero()
        before = block.new_zeros(0)
        for first in (int(coupled[0]) if len(coupled) else old, 0, 0):
            part = self.rows[first:new]
            before = before if first or len(before) else lengths(block)
            coefficients = inner_products(part, block)
            block = block - part.T @ coefficients.to(block)
            inner[first:] += coefficients.cpu()
            if first:
                continue
            after = lengths(block)
            if bool((after >= 0.995 * before).all()):
                break
            before = after
        self._check_symmetry(inner, old)
        self.matrix[:new, old:new] = inner
        self.matrix[old:new, :new] = inner.T
        self.matrix[old:new, old:new] = (inner[old:] + inner[old:].T) / 2
        self.size, self.pending = new, 0
        self.coupling = torch.zeros(0, new, dtype=torch.float64, device="cpu")
        if self.size < self.op.shape[0]:
            last = self._append(block)
            self.coupling = torch.zeros(self.pending, new, dtype=torch.float64, device="cpu")
            self.coupling[:, old:] = last

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ascending (size,), coordinates (size, size), and residuals, up to rounding."""
        values, vectors = torch.linalg.eigh(self.matrix[: self.size, : self.size])
        return values, vectors, (self.coupling @ vectors).norm(dim=0)

    def restart(self, values: Tensor, kept: Tensor, *, fresh: bool = False) -> None:
        """Keep the Ritz pairs of coordinates ``kept`` (size, count); ``fresh``: go on from a random block."""
        count = kept.shape[1]
        block = self.rows[self.size : self.size + self.pending].clone()
        self.rows[:count] = kept.T.to(self.rows) @ self.rows[: self.size]
        self.matrix.zero_()
        self.matrix[:count, :count] = torch.diag(values)
        self.coupling = self.coupling @ kept
        self.size, self.pending = count, 0
        if fresh:
            self.dropped += float(self.coupling.norm())
            self._append(
                torch.zeros_like(self.rows[: min(self.block, self.op.shape[0] - count)]).T
            )  # made random there
            self.coupling = torch.full((self.pending, count), torch.nan, dtype=torch.float64, device="cpu")  # not known
            return
        self.rows[count : count + len(block)] = block
        self.pending = len(block)

    def vectors(self, coordinates: Tensor) -> Tensor:
        """The vectors (n, count) of coordinates (size, count)."""
        return self.rows[: self.size].T @ coordinates.to(self.rows)

    def release(self) -> None:
        """Free the rows: nothing is asked of the basis any more but what it counted."""
        self.rows = self.rows.new_empty(0, self.rows.shape[1])

    def _append(self, block: Tensor) -> Tensor:
        """Orthonormalise columns after V as the pending block; their triangular factor (pending, columns)."""
        n, columns = block.shape
        room = min(columns, n - self.size)
        factor = torch.zeros(room, columns, dtype=torch.float64, device="cpu")
        scale = max(float(self.matrix.abs().max()), float(lengths(block).max()) if not self.size else 0.0)
        floor = 10 * torch.finfo(block.dtype).eps * scale
        for column in range(columns):
            vector = block[:, column]
            added = self.rows[self.size : self.size + self.pending]
            for _ in range(2 if self.pending else 0):
                inner = inner_products(added, vector)
                vector = vector - added.T @ inner.to(vector)
                factor[: self.pending, column] += inner.cpu()
            size = float(lengths(vector))
            if self.pending == room:
                continue
            factor[self.pending, column] = length = size
            if size <= floor:  # an invariant space: go on outside it, for eigenvalues met twice
                factor[self.pending, column], vector = 0.0, self._random()
                length = float(lengths(vector))
            torch.div(vector, length, out=self.rows[self.size + self.pending])
            self.pending += 1
        return factor

    def _random(self) -> Tensor:
        """A random vector orthogonal to all rows so far."""
        known = self.rows[: self.size + self.pending]
        if self._undrawn:
            gaussian(self.op.shape[0], self._undrawn, self.generator, self.op)
            self._undrawn = 0
        vector = gaussian(self.op.shape[0], 1, self.generator, self.op).squeeze(1)
        for _ in range(3):
            vector = vector / float(lengths(vector))
            vector = vector - known.T @ inner_products(known, vector).to(vector)
        return vector

    def _check_symmetry(self, inner: Tensor, old: int) -> None:
        """<v, A w> of old v and new w is known from A v already, unless it was dropped."""
        square = inner[old:] - inner[old:].T
        across = torch.nan_to_num(inner[:old].T - self.coupling) if old else square
        error = max(float(square.abs().max()), float(across.abs().max()) - self.dropped)
        self.scale = max(self.scale, float(inner.abs().max()))
        check_asymmetry(error, self.scale, self.op, self.where)
