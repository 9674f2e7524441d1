"""The function itself: values, gradients and where it is least, in the basis in which its matrix is diagonal."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback._checks import as_number, input_error
from pullback.dynamics.quadratic.values import points, symmetric, values
from pullback.operators import Operator

NAME = "Quadratic"


class QuadraticFunction:
    """1/2 x^T A x + b^T x + c; see ``Quadratic``."""

    def __init__(self, A: Any, b: Any = None, c: float = 0.0) -> None:
        matrix = values(A, "A", NAME)
        if matrix.dim() not in (1, 2) or (matrix.dim() == 2 and matrix.shape[0] != matrix.shape[1]) or not len(matrix):
            raise input_error(NAME, "A (d, d), or eigenvalues (d,)", f"{tuple(matrix.shape)}", "Pass a square matrix")
        self.dtype = matrix.dtype
        self.c = as_number(c)
        if not math.isfinite(self.c):
            raise input_error(NAME, "a finite number `c`", repr(c), "Pass the value at x = 0")
        size = len(matrix)
        if matrix.dim() == 1:
            self._h, self._Q = matrix.double(), None
        else:
            mirrored = isinstance(A, Operator) and A.symmetric  # its products round differently from row to row
            checked = (matrix + matrix.T).double() / 2 if mirrored else symmetric(matrix, NAME)
            self._h, self._Q = torch.linalg.eigh(checked)
            rounding = size * torch.finfo(matrix.dtype).eps * self._h.abs().max()
            self._h = torch.where(self._h.abs() <= rounding, 0.0, self._h)
        self._b = torch.zeros(size, dtype=torch.float64) if b is None else self._vector(b, "b", NAME)
        if self._b.dim() != 1:
            got = f"shape {tuple(self._b.shape)}"
            raise input_error(NAME, f"`b` ({size},)", got, "Pass one number a coordinate of A")
        slope = self._turned(self._b)
        flat = self._h == 0
        self._shift = torch.where(flat, slope, 0.0)  # the slope along directions without curvature, which never changes
        self._centre = torch.where(flat, 0.0, -slope / torch.where(flat, 1.0, self._h))

    @property
    def eigenvalues(self) -> Tensor:
        """Of A, (d,): ascending, or in the order given."""
        return self._h.to(self.dtype)

    @property
    def eigenvectors(self) -> Tensor:
        """Of A, columns, (d, d)."""
        return (torch.eye(len(self._h), dtype=torch.float64) if self._Q is None else self._Q).to(self.dtype)

    @property
    def b(self) -> Tensor:
        """(d,)."""
        return self._b.to(self.dtype)

    @property
    def stationary_point(self) -> Tensor:
        """Where the gradient is 0, (d,): minimum, saddle or maximum; of several the one nearest to 0.

        Raises:
            InputError: there is none, since b has a part along a direction without curvature.
        """
        where, slope = f"{NAME}.stationary_point", self._shift.abs().max()
        if slope > len(self._h) * torch.finfo(self.dtype).eps * self._b.abs().max():
            got = f"a slope of {float(slope):.3g} along a direction without curvature"
            raise input_error(where, "a gradient that vanishes somewhere", got, "Add curvature there")
        return self._back(self._centre).to(self.dtype)

    @property
    def minimiser(self) -> Tensor:
        """Where the function is least, -A^-1 b, (d,); of several the one nearest to 0.

        Raises:
            InputError: it has no least value.
        """
        where = f"{NAME}.minimiser"
        if (self._h < 0).any():
            got = f"an eigenvalue {float(self._h.min()):.3g}"
            raise input_error(where, "no negative curvature", got, "Ask for `stationary_point`")
        return self.stationary_point

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue that is not 0, by modulus."""
        known = self._h[self._h != 0].abs()
        return float(known.max() / known.min()) if len(known) else math.nan

    def loss(self, x: Any) -> Tensor:
        """Values at points, (..., d) -> (...), which autograd can differentiate."""
        y = self._turned(self._points(x, f"{NAME}.loss"))
        slope = self._turned(self._b)
        return ((self._h * y / 2 + slope) * y).sum(-1).add(self.c).to(self.dtype)

    def gradient(self, x: Any) -> Tensor:
        """A x + b, (..., d)."""
        y = self._turned(self._points(x, f"{NAME}.gradient"))
        return (self._back(self._h * y) + self._b).to(self.dtype)

    def excess(self, x: Any) -> Tensor:
        """Loss above that of the stationary point, (...), without the cancellation of a difference."""
        y = self._turned(self._points(x, f"{NAME}.excess")) - self._centre
        return ((self._h * y / 2 + self._shift) * y).sum(-1).to(self.dtype)

    def _vector(self, value: Any, name: str, where: str) -> Tensor:
        return self._sized(values(value, name, where), name, where)

    def _points(self, x: Any, where: str) -> Tensor:
        return self._sized(points(x, "x", where), "x", where)

    def _sized(self, vector: Tensor, name: str, where: str) -> Tensor:
        vector = vector.double()
        if vector.dim() == 0 or vector.shape[-1] != len(self._h):
            expected = f"`{name}` with {len(self._h)} coordinates last"
            raise input_error(where, expected, f"shape {tuple(vector.shape)}", "Pass one number a coordinate of A")
        return vector

    def _turned(self, x: Tensor) -> Tensor:
        """Coordinates in the eigenbasis."""
        return x if self._Q is None else x @ self._Q

    def _back(self, y: Tensor) -> Tensor:
        """From the eigenbasis; sums of what is beyond all numbers are inf."""
        if self._Q is None:
            return y
        x = y @ self._Q.T
        return torch.where(x.isnan(), torch.inf, x)

    def __repr__(self) -> str:
        low, high = float(self._h.min()), float(self._h.max())
        return f"Quadratic({len(self._h)} dimensions, eigenvalues {low:.4g} to {high:.4g})"
