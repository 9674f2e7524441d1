"""Where descent on a quadratic with noisy gradients settles, and the covariances a user may give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.dynamics.quadratic.methods import recursion
from pullback.dynamics.quadratic.settings import Settings
from pullback.dynamics.quadratic.values import check_momentum, symmetric, values


def settled(h: Tensor, C: Tensor, settings: Settings, limit: float, where: str) -> Tensor:
    """Stationary covariance in the eigenbasis, (d, d), of the heavy ball with noise of covariance C.

    The state (y[k], y[k-1]) of a direction is multiplied by M, (2, 2), a step; of two directions the covariance S of
    their states solves S = M_i S M_j^T + lr^2 C_ij e e^T, a system of four.

    Raises:
        InputError: as ``Quadratic.stationary_covariance``.
    """
    check_momentum(where, settings.momentum)
    if (h <= 0).any() or settings.lr >= limit:
        stable = (h > 0).all()
        got = f"lr {settings.lr:g}, whose limit is {limit:.6g}" if stable else f"a curvature of {float(h.min()):.3g}"
        remedy = "Lower the rate" if stable else "Leave that direction out: what grows without bound does not settle"
        raise input_error(where, "positive curvatures and a rate below the largest stable one", got, remedy)
    t, m, _ = recursion("heavy_ball", h, settings, where)
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    M = torch.stack([torch.stack([t, -m], -1), torch.stack([one, zero], -1)], -2)
    pairs = torch.einsum("iab,jcd->ijacbd", M, M).reshape(len(h), len(h), 4, 4)
    brought = torch.zeros(len(h), len(h), 4, 1, dtype=torch.float64)
    brought[..., 0, 0] = settings.lr**2 * C
    return torch.linalg.solve(torch.eye(4, dtype=torch.float64) - pairs, brought)[..., 0, 0]


def covariance_of(value: Any, size: int, where: str) -> Tensor:
    """A covariance as a matrix (d, d), from a number, (d,), (d, d), or None for none."""
    if value is None:
        return torch.zeros(size, size, dtype=torch.float64)
    covariance = values(value, "noise_covariance", where)
    if covariance.dim() == 0:
        covariance = covariance.expand(size)
    if covariance.shape not in {(size,), (size, size)}:
        expected = f"`noise_covariance`: a number, ({size},) or ({size}, {size})"
        raise input_error(where, expected, f"shape {tuple(covariance.shape)}", "Pass the noise of each coordinate")
    matrix = torch.diag(covariance.double()) if covariance.dim() == 1 else symmetric(covariance, where)
    low, high = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
    if low < -size * torch.finfo(covariance.dtype).eps * abs(high):
        got = f"an eigenvalue {low:.3g}"
        raise input_error(where, "a covariance without negative variances", got, "Pass one that is a covariance")
    return matrix
