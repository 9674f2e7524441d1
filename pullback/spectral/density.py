"""The whole spectrum as a density: stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, check_positive, input_error
from pullback._results import Drawn, Estimate
from pullback._rng import make_generator
from pullback._statistics import student
from pullback.operators.operator import Operator
from pullback.spectral.arguments import check_asymmetry, check_finite, gaussian, product, square_operator, work_dtype
from pullback.spectral.tridiagonal import quadrature, tridiagonalise


@dataclass(frozen=True)
class Density(Drawn):
    """Density of eigenvalues, of total mass 1, smoothed by a Gaussian of known width.

    Attributes:
        grid: points (G,), ascending.
        density: share of eigenvalues per unit at each point, (G,).
        stderr: standard error of ``density`` over the draw of the probes, (G,).
        width: standard deviation of the Gaussian that the spectrum is smoothed with.
        nodes: Ritz values of every probe, (num_probes, num_matvecs).
        weights: their shares, (num_probes, num_matvecs); each row sums to 1.
        num_matvecs: products used, of all probes together.
        num_eigenvalues: n; a share times n is a number of eigenvalues.
    """

    grid: Tensor
    density: Tensor
    stderr: Tensor
    width: float
    nodes: Tensor
    weights: Tensor
    num_matvecs: int
    num_eigenvalues: int

    def share(self, low: float = -float("inf"), high: float = float("inf")) -> Estimate:
        """Share of eigenvalues from ``low`` to ``high``, not smoothed.

        Where an end falls between two nodes, their weights bound what quadrature can miss (Chebyshev, Markov and
        Stieltjes); the standard error has a third of that beside the spread over probes.
        """
        inside = (self.nodes >= low) & (self.nodes <= high)
        value, stderr = _mean(self.weights, inside.to(self.weights), self.num_eigenvalues)
        missed = sum(self._weight_beside(end) for end in (low, high))
        return Estimate(float(value), float(stderr) + missed / 3, self.num_matvecs)

    def _weight_beside(self, point: float) -> float:
        """Larger weight of the two nodes around a point, averaged over probes."""
        below = torch.where(self.nodes <= point, self.nodes, -torch.inf).argmax(1, keepdim=True)
        above = torch.where(self.nodes > point, self.nodes, torch.inf).argmin(1, keepdim=True)
        if not float(self.nodes.min()) <= point <= float(self.nodes.max()):
            return 0.0
        return float(torch.maximum(self.weights.gather(1, below), self.weights.gather(1, above)).mean())

    def moment(self, power: int) -> Estimate:
        """Mean of ``eigenvalue ** power``, which is tr(A^power) / n, exact in each probe below 2 num_matvecs."""
        value, stderr = _mean(self.weights, self.nodes**power, self.num_eigenvalues)
        return Estimate(float(value), float(stderr), self.num_matvecs)

    def __str__(self) -> str:
        low, high = float(self.nodes.min()), float(self.nodes.max())
        cost = f"{len(self.nodes)} probes, {self.num_matvecs} products"
        return f"spectrum from {low:.4g} to {high:.4g}, width {self.width:.3g} ({cost})"


def spectral_density(
    op: Any,
    num_matvecs: int = 60,
    num_probes: int = 10,
    *,
    seed: int = 0,
    width: float | None = None,
    grid: Tensor | int = 512,
    memory_limit: int = 2**30,
) -> Density:
    """Density of the eigenvalues of a symmetric operator, by stochastic Lanczos quadrature with full orthogonalisation.

    Each probe is a random vector v on the sphere; Lanczos turns v^T f(A) v into a sum over Ritz values, exact for
    polynomials f of degree below 2 ``num_matvecs``, and its mean over v is tr f(A) / n.

    Args:
        op: a symmetric operator, matrix, or any object with ``shape`` and ``@``, (n, n).
        num_matvecs: products of each probe, at most n.
        num_probes: random vectors, at least 2; the standard error falls as the root of their number.
        seed: of the probes, drawn from a generator of its own.
        width: standard deviation of the smoothing Gaussian; None means (largest - smallest Ritz value) / num_matvecs,
            the narrowest that so many products resolve: a Gaussian narrower than half of it shows Ritz values, not
            eigenvalues.
        grid: points of the density (G,), or their number, spread over the spectrum and 4 widths on either side.
        memory_limit: bytes for the bases of the probes that run together; the rest wait.

    Returns:
        Density, with the raw nodes and weights.

    Raises:
        InputError: the operator is not symmetric, or a count or the width is out of range.

    Cost: num_matvecs * num_probes products, in blocks of the probes that fit; n num_matvecs numbers for each of those.

    References: Golub and Welsch (1969); Lin, Saad and Yang (2016); Ghorbani, Krishnan and Xiao (2019).

    Example:
        >>> A = torch.diag(torch.linspace(0, 1, 300, dtype=torch.float64))
        >>> found = spectral_density(A, 40, 10)
        >>> middle = found.density[(found.grid > 0.2) & (found.grid < 0.8)]
        >>> bool((middle - 1).abs().max() < 0.3), round(found.moment(1).value, 1)
        (True, 0.5)
    """
    where = "spectral_density"
    operator = square_operator(op, where)
    n = operator.shape[0]
    check_count(where, "num_matvecs", num_matvecs, 1)
    check_count(where, "num_probes", num_probes, 2)
    if width is not None:
        check_positive(where, "width", width)
    steps = min(num_matvecs, n)
    nodes, weights = _run(operator, steps, num_probes, seed, memory_limit, where)
    inside = nodes[weights > 0]  # where Lanczos ended early the rest of the nodes carry nothing
    low, high = float(inside.min()), float(inside.max())
    if width is None:
        width = (high - low) / steps
        size = max(abs(low), abs(high))
        if high - low <= n * torch.finfo(work_dtype(operator)).eps * size:  # a single eigenvalue: no extent of its own
            width = 1e-3 * (size or 1.0)
    points = _grid(grid, low - 4 * width, high + 4 * width, where)
    scaled = (points.view(-1, 1, 1) - nodes) / width  # (G, probes, steps)
    kernel = torch.exp(-0.5 * scaled.square()) / (width * (2 * torch.pi) ** 0.5)
    density, stderr = _mean(weights, kernel, n)
    return Density(points, density, stderr, width, nodes, weights, steps * num_probes, n)


def _mean(weights: Tensor, values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean of f over the spectrum, values f (..., probes, steps) at the nodes, and its standard error.

    For v uniform on the sphere var(v^T f(A) v) = 2 / (n + 2) (mean f^2 - (mean f)^2), which all probes tell together;
    their own spread would miss eigenvalues of which few probes hold much.
    """
    mean = (weights * values).sum(-1).mean(-1)
    square = (weights * values.square()).sum(-1).mean(-1)
    variance = 2 / (n + 2) * (square - mean.square()).clamp(min=0) / len(weights)
    return mean, student(len(weights)) * variance.sqrt()


def _run(op: Operator, steps: int, probes: int, seed: int, memory_limit: int, where: str) -> tuple[Tensor, Tensor]:
    """Nodes and weights (probes, steps), float64 on the CPU, of as many probes at a time as fit."""
    n, generator = op.shape[0], make_generator(seed)
    together = max(1, min(probes, memory_limit // (8 * n * (steps + 4))))
    found = []
    for first in range(0, probes, together):
        start = gaussian(n, min(together, probes - first), generator, op).T.contiguous()
        start = start / start.norm(dim=1, keepdim=True)
        diagonal, off = tridiagonalise(_checked(op, where), start, steps)
        nodes, leading, _ = quadrature(diagonal.cpu(), off.cpu())
        found.append((nodes, leading.square()))
    return torch.cat([nodes for nodes, _ in found]), torch.cat([weights for _, weights in found])


def _checked(op: Operator, where: str) -> Callable[[Tensor], Tensor]:
    """Products of rows; those of the first call, with the probes, are used to see whether the operator is symmetric."""
    calls = 0

    def apply(rows: Tensor) -> Tensor:
        nonlocal calls
        products = product(op, rows.T).T
        check_finite(products, where)
        if calls == 0:
            inner = rows @ products.T
            scale = float(products.norm(dim=1).max())
            check_asymmetry(float((inner - inner.T).abs().max()), scale, op, where)
        calls += 1
        return products

    return apply


def _grid(grid: Tensor | int, low: float, high: float, where: str) -> Tensor:
    """The points asked for, in float64 on the CPU like nodes and weights."""
    if isinstance(grid, int):
        check_count(where, "grid", grid, 2)
        return torch.linspace(low, high, grid, dtype=torch.float64, device="cpu")
    if grid.dim() != 1:
        raise input_error(where, "`grid` (G,) or a number of points", f"shape {tuple(grid.shape)}", "Pass a vector")
    return grid.detach().cpu().double()
