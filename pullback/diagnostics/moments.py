"""Moments of the gradient matrix's spectrum, from the kernel alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import check_option, input_error
from pullback._results import Shown
from pullback.kernels import Kernel

NORMALISATIONS = ("mean", "sum", "unbiased")


@dataclass(frozen=True)
class Moments(Shown):
    """First and second spectral moments of the empirical Fisher matrix F, a (P, P) matrix made from G, (N, P).

    Attributes:
        M1: tr(F) / P.
        M2: tr(F^2) / P.
        conditioning: P tr(K^2) / tr(K)^2, which is M2 / M1^2 under "mean" and "sum". It lies between
            P / rank(G) and P; 1 (all eigenvalues of F equal) is out of reach when N < P. It sees how unequal the
            eigenvalues are, not the sign of alignment: see ``alignment``.
        effective_rank: tr(K)^2 / |K|_F^2, between 1 and rank(G) <= N.
        normalisation: "mean": F = G^T G / N, M1 = mean_i K_ii / P and M2 = mean of K_ij^2 / P over all ordered
            pairs, i = j included. "sum": F = G^T G. "unbiased": M2 averages over pairs i != j, an unbiased
            estimate of the population's tr(F^2) / P.
        num_samples: N.
        num_params: P.
    """

    M1: float
    M2: float
    conditioning: float
    effective_rank: float
    normalisation: str
    num_samples: int
    num_params: int

    @property
    def spread(self) -> float:
        """N tr(K^2) / tr(K)^2, between 1 (orthogonal gradients of equal length) and N; free of the width P."""
        return self.num_samples / self.effective_rank

    @property
    def conditioning_range(self) -> tuple[float, float]:
        """The values ``conditioning`` can take for these N and P: P / min(N, P) to P."""
        return self.num_params / min(self.num_samples, self.num_params), float(self.num_params)


def moments(kernel: Kernel | Tensor, *, normalisation: str = "mean", num_params: int | None = None) -> Moments:
    """M1, M2, their ratio and the effective rank, in units loss^2 / parameter^2 (M1) and its square (M2).

    Args:
        kernel: K = G G^T of one set of samples, (N, N).
        normalisation: "mean", "sum" or "unbiased", see ``Moments``.
        num_params: P, if ``kernel`` is a plain tensor.

    Raises:
        InputError: not symmetric, a single sample under "unbiased", an unknown normalisation.

    Cost: one pass over K. Where every gradient is zero, ``conditioning`` and ``effective_rank`` are NaN.

    Example:
        >>> G = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        >>> m = moments(G @ G.T, num_params=3)
        >>> m.M1, m.M2, round(m.conditioning, 4)
        (1.25, 2.4375, 1.56)
    """
    where = "moments"
    check_option(where, "normalisation", normalisation, NORMALISATIONS)
    total = square_kernel(kernel, where)
    p = num_params if num_params is not None else getattr(kernel, "num_params", None)
    if p is None:
        raise input_error(where, "`num_params` for a plain tensor", "none", "Pass num_params=G.shape[1]")
    n = len(total)
    k = total.double()
    trace, squares = float(k.diagonal().sum()), float(k.square().sum())
    first, second = trace / p, squares / p
    if normalisation == "mean":
        first, second = first / n, second / n**2
    elif normalisation == "unbiased":
        if n < 2:
            raise input_error(where, "two samples or more for 'unbiased'", f"{n}", "Use 'mean'")
        first, second = first / n, (squares - float(k.diagonal().square().sum())) / (n * (n - 1)) / p
    ratio = squares / trace**2 if trace > 0 else float("nan")
    rank = 1 / ratio if ratio > 0 else float("nan")
    return Moments(first, second, p * ratio, rank, normalisation, n, p)


def square_kernel(kernel: Kernel | Tensor, where: str) -> Tensor:
    """The (N, N) tensor of a kernel of one set of samples with itself; a plain tensor may be off by rounding."""
    if not isinstance(kernel, Tensor | Kernel):
        raise input_error(where, "a kernel, or its tensor (N, N)", type(kernel).__name__, "Pass pb.backward_kernel(…)")
    total = kernel if isinstance(kernel, Tensor) else kernel.total
    square = total.dim() == 2 and total.shape[0] == total.shape[1]
    symmetric = square and (kernel.symmetric if isinstance(kernel, Kernel) else _is_symmetric(total))
    if not symmetric:
        raise input_error(
            where,
            "a symmetric kernel (N, N)",
            f"shape {tuple(total.shape)}" + (", not symmetric" if square else ""),
            "Pass the kernel of one data set with itself",
        )
    return total


def _is_symmetric(total: Tensor) -> bool:
    rounding = 100 * torch.finfo(total.dtype).eps * float(total.abs().max()) if total.numel() else 0.0
    return bool(((total - total.T).abs() <= rounding).all())
