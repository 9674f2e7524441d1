"""``noisy_moments``: mean and covariance of descent with noisy gradients, at every step.

Along eigendirections i, j a step multiplies E[y_i y_j] by a factor and adds what the noise brings, so that both moments
are geometric series.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import as_number, check_rate, input_error
from pullback._results import Shown
from pullback.dynamics.quadratic.methods import followed
from pullback.dynamics.quadratic.noisy_limit import covariance_of
from pullback.dynamics.quadratic.quadratic import Quadratic, check_quadratic


@dataclass(frozen=True)
class Moments(Shown):
    """Mean and covariance of iterates x[k], k = 0, ..., K.

    Attributes:
        mean: (K + 1, d).
        covariance: over realisations of the noise, (K + 1, d, d).
        excess_loss: mean loss above that of the stationary point, (K + 1,).
    """

    mean: Tensor
    covariance: Tensor
    excess_loss: Tensor


def noisy_moments(
    problem: Quadratic, x0: Any, steps: int, *, lr: float, noise_covariance: Any = None, relative_noise: float = 0.0
) -> Moments:
    """Mean and covariance of x[k+1] = x[k] - lr (A x[k] + b + e[k]), exactly.

    The noise e is drawn anew at each step, with mean 0. Additive noise has the covariance C whatever x is; relative
    noise is, in each eigendirection, s times the slope there times a number of variance 1, so that it vanishes where
    the gradient does. With factors a = 1 - lr h of eigendirections and slopes h y:

        E[y_i y_j] <- (a_i a_j + [i = j] lr^2 s^2 h_i^2) E[y_i y_j] + lr^2 C_ij.

    So additive noise leaves a variance lr C / (h (2 - lr h)) that no further step removes, and relative noise leaves
    none but lowers the largest stable rate, from 2 / h to 2 / (h (1 + s^2)).

    Args:
        problem: of positive, zero or negative curvature; without a slope along directions that have none.
        x0: start, (d,).
        steps: K.
        lr: learning rate.
        noise_covariance: C: one variance for all coordinates, (d,) or (d, d).
        relative_noise: s.

    Returns:
        Moments, (K + 1, ...), in the problem's dtype.

    Raises:
        InputError: a covariance of another shape or with negative variances; a rate that is not positive; a problem
            without a stationary point.

    Example:
        >>> problem = Quadratic(torch.tensor([100.0], dtype=torch.float64))
        >>> found = noisy_moments(problem, [0.0], 100, lr=0.02, noise_covariance=1.0)
        >>> print(f"{found.covariance[-1].item():.4f}")  # lr h = 2: a random walk of variance K lr^2
        0.0400
    """
    where = "noisy_moments"
    check_quadratic(where, problem)
    check_rate(where, "lr", lr)
    if not 0 <= as_number(relative_noise) < math.inf:
        raise input_error(where, "`relative_noise` of at least 0", repr(relative_noise), "Pass a standard deviation")
    path = problem.trajectory("gradient_descent", x0, steps, lr=lr).double()
    if path.dim() != 2:
        raise input_error(where, "one start (d,)", f"shape {tuple(path.shape[:-2])} of them", "Call it for each start")
    h, Q = problem.eigenvalues.double(), problem.eigenvectors.double()
    y = (path - problem.stationary_point.double()) @ Q
    a = 1 - lr * h
    factor = torch.outer(a, a) + torch.diag(lr**2 * relative_noise**2 * h.square())
    added = lr**2 * (Q.T @ covariance_of(noise_covariance, len(h), where) @ Q)
    second = followed(factor, torch.zeros_like(factor), added, torch.outer(y[0], y[0]), steps).movedim(-1, 0)
    covariance = second - y.unsqueeze(-1) * y.unsqueeze(-2)
    excess = (second.diagonal(dim1=-2, dim2=-1) * h).sum(-1) / 2
    dtype = problem.dtype
    return Moments(path.to(dtype), (Q @ covariance @ Q.T).to(dtype), excess.to(dtype))
