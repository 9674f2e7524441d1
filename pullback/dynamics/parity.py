"""The parity problem: gradients that hardly depend on which parity is to be learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_count, input_error
from pullback._results import Shown
from pullback._rng import make_generator
from pullback.dynamics.quadratic.values import check_number_of, values

MOST_BITS = 20


@dataclass(frozen=True)
class ParityVariance(Shown):
    """Over all 2^d parities of d bits as targets.

    Attributes:
        variance: mean squared distance of the gradient from its mean over targets.
        bound: E|g|^2 / 2^d, which it is below.
        mean: squared length of the mean gradient.
    """

    variance: float
    bound: float
    mean: float


def parity_variance(model: Callable[[Tensor, Tensor], Tensor], w: Any, bits: int) -> ParityVariance:
    """How much the gradient tells about which parity is the target, exactly.

    With targets (-1)^(v x) of bits x, the part of the gradient that knows the target is E_x (-1)^(v x) g(x),
    g the gradient of the model's output (squared or linear loss). These are Fourier coefficients of g, so that, by
    Parseval, their squared lengths add up to E|g|^2: over all 2^d targets v the variance is E|g|^2 / 2^d less
    |g(0)|^2 / 4^d. No method that goes by such gradients can do in few steps what takes 2^d digits to see.

    Args:
        model: parameters (P,) and bits (d,), 0 or 1, -> output, a number.
        w: parameters, (P,).
        bits: d, at most 20.

    Returns:
        ParityVariance.

    Raises:
        InputError: a number of bits out of range; parameters that are not finite, or not (P,).

    Cost: 2^d gradients.

    References: Shalev-Shwartz, Shamir & Shammah (2017), arXiv:1703.07950, theorem 1.

    Example:
        >>> w = torch.linspace(-1, 1, 8, dtype=torch.float64)
        >>> found = parity_variance(lambda w, x: torch.tanh(w @ (2 * x - 1)), w, 8)
        >>> round(found.variance, 8), round(found.bound, 8)
        (0.00813556, 0.00825763)
    """
    g, _ = _gradients(model, w, bits, "parity_variance")
    bound = float(g.square().sum(1).mean()) / 2**bits
    mean = float(g[0].square().sum()) / 4**bits
    return ParityVariance(bound - mean, bound, mean)


@dataclass(frozen=True)
class SampledParities(Shown):
    """What some of the 2^d parities say of all.

    Attributes:
        variance: estimate of ``ParityVariance.variance``.
        stderr: its standard error.
        by_size: mean squared distance of the gradient from its mean over all targets, by how many of the digits a
            parity is of, 0 to d, (d + 1,).
        by_size_stderr: their standard errors; 0 where all parities of that size were looked at, (d + 1,).
    """

    variance: float
    stderr: float
    by_size: Tensor
    by_size_stderr: Tensor


def sampled_parity_variance(
    model: Callable[[Tensor, Tensor], Tensor], w: Any, bits: int, draws: int = 20, *, seed: int = 0
) -> SampledParities:
    """The variance of ``parity_variance``, from the gradients of parities that are drawn, target by target.

    Parities are drawn without replacement among those of each size (the number of their digits), and sizes weighted by
    how many there are. Drawn among all alike, hardly any would be of few digits, which is where a smooth model's
    gradients differ: the mean would come out too small, with a small error.

    Args:
        model: as for ``parity_variance``.
        w: parameters, (P,).
        bits: d, at most 20.
        draws: parities of each size, 2 at least; all where there are no more.
        seed: of the draws.

    Returns:
        SampledParities.

    Raises:
        InputError: as ``parity_variance``; fewer than two draws.

    Cost: 2^d gradients, and (d + 1) ``draws`` sums of them.

    References: Shalev-Shwartz, Shamir & Shammah (2017), arXiv:1703.07950, theorem 1.

    Example:
        >>> w = torch.linspace(-1, 1, 8, dtype=torch.float64)
        >>> found = sampled_parity_variance(lambda w, x: torch.tanh(w @ (2 * x - 1)), w, 8, draws=70)
        >>> round(found.variance, 8), found.stderr  # 70 is C(8, 4), so all were drawn
        (0.00813556, 0.0)
    """
    where = "sampled_parity_variance"
    check_count(where, "draws", draws, 2)
    generator = make_generator(seed)
    g, x = _gradients(model, w, bits, where)
    size, means, errors = x.sum(1), [], []
    for count in range(bits + 1):
        among = (size == count).nonzero()[:, 0]
        chosen = among[torch.randperm(len(among), generator=generator, device=generator.device)[:draws]]
        signs = 1 - 2 * ((x @ x[chosen].T) % 2)  # (2^d, draws)
        distances = (signs.T @ g - g[0]).square().sum(1) / 4**bits  # g[0] / 2^d is the mean over all targets
        means.append(float(distances.mean()))
        left = 1 - len(chosen) / len(among)  # nothing is uncertain where all were drawn
        errors.append(float(distances.std()) * math.sqrt(left / len(chosen)) if left else 0.0)
    by_size, by_size_stderr = (torch.tensor(each, dtype=torch.float64) for each in (means, errors))
    shares = torch.tensor([math.comb(bits, k) / 2**bits for k in range(bits + 1)], dtype=torch.float64)
    variance, stderr = float(shares @ by_size), float((shares * by_size_stderr).norm())
    return SampledParities(variance, stderr, by_size, by_size_stderr)


def _gradients(model: Callable[[Tensor, Tensor], Tensor], w: Any, bits: int, where: str) -> tuple[Tensor, Tensor]:
    """The model's gradient at every input, (2^d, P), and those inputs, (2^d, d); zeros come first.

    Raises:
        InputError: a number of bits out of range; parameters that are not finite, or not (P,).
    """
    bits = check_count(where, "bits", bits, 1, MOST_BITS)
    at = values(w, "w", where)
    if at.dim() != 1:
        raise input_error(where, "`w` (P,)", f"shape {tuple(at.shape)}", "Pass one vector of parameters")
    places = torch.arange(2**bits)[:, None] >> torch.arange(bits)
    x = (places & 1).to(at.dtype)
    check_number_of(where, "model", model, at, x[0])
    return torch.func.vmap(torch.func.grad(model), (None, 0))(at, x), x
