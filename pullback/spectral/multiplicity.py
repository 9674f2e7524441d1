"""Eigenvalues met more than once: how long to look for them."""

from __future__ import annotations

import math

from torch import Tensor

SHARE = 0.1  # a random vector holds less than this times 1/sqrt(n) of a given direction in 8 of 100 draws


class Search:
    """What a Krylov space of a new random vector has to show before nothing more is looked for.

    An eigenvector that was missed makes up about 1/sqrt(n) of a random vector. In s steps a Krylov space magnifies it
    by the Chebyshev polynomial T_s(1 + 2 gap), where ``gap`` is its distance from all other eigenvalues relative to
    their spread (Saad 1980). Once that would have brought it out, and it is not there, it is taken not to exist.
    """

    def __init__(self, n: int, which: str) -> None:
        self.ends = {"largest": (1.0,), "smallest": (-1.0,), "both": (1.0, -1.0)}[which]
        self.needed = math.acosh(math.sqrt(n) / SHARE)
        self.steps = 0
        self.found: Tensor | None = None
        self.edges: list[float] = []  # for each end, the outermost value not chosen
        self.floors: list[float] = []  # and the innermost of all

    def changed(self, values: Tensor, floor: float) -> bool:
        """Whether these values differ from those that the search began with (so that it begins again)."""
        return self.found is None or float((values - self.found).abs().max()) > 3 * floor

    def begin(self, values: Tensor, chosen: list[int], others: list[int]) -> None:
        """Look beside these values from now on."""
        self.found, self.steps = values[chosen], 0
        self.edges = [self._edge(values, others, end) for end in self.ends]
        self.floors = [float((end * values).min()) for end in self.ends]

    def nothing(self, values: Tensor, errors: Tensor, chosen: list[int], others: list[int], floor: float) -> bool:
        """Whether the search has ended, for values ascending and their residuals."""
        if self.changed(values[chosen], floor) or self.steps < 2:
            return False
        return all(self._ended(i, values, errors, chosen, others, floor) for i in range(len(self.ends)))

    def _ended(
        self, i: int, values: Tensor, errors: Tensor, chosen: list[int], others: list[int], floor: float
    ) -> bool:
        end = self.ends[i]
        if others and float(errors[max(others, key=lambda j: end * float(values[j]))]) <= floor:
            return True  # the next value has converged, so what lies beyond it has too
        self.edges[i] = max(self.edges[i], self._edge(values, others, end))
        self.floors[i] = min(self.floors[i], float((end * values).min()))
        edge, spread = self.edges[i], self.edges[i] - self.floors[i]
        inner = min(v for v in (end * values[chosen]).tolist() if v >= edge) if self._above(values, chosen, i) else edge
        gap = (inner - edge) / spread if spread > 0 else math.inf
        return gap > 0 and self.steps * math.acosh(1 + 2 * min(gap, 1e6)) >= self.needed

    def _above(self, values: Tensor, chosen: list[int], i: int) -> bool:
        return bool((self.ends[i] * values[chosen] >= self.edges[i]).any())

    @staticmethod
    def _edge(values: Tensor, others: list[int], end: float) -> float:
        return max((end * values[others]).tolist(), default=-math.inf)
