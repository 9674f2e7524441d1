"""Gradient noise: how much the gradients of single samples scatter around their mean, from the kernel alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown
from pullback.diagnostics.moments import square_kernel
from pullback.kernels import Kernel


@dataclass(frozen=True)
class GradientNoise(Shown):
    """Signal and noise of per-sample gradients g_i with mean G and covariance Sigma over the population.

    Attributes:
        noise_scale: tr(Sigma) / |G|^2, in samples: the "simple" noise scale. Batches far below it are mostly noise and
            gain from being larger; those far above it hardly do. nan where the estimate of |G|^2 is not above 0.
        noise_scale_stderr: its standard error.
        signal_to_noise: |G|^2 / tr(Sigma) of one sample; that of a batch of B is B times it. Unlike the noise scale it
            is defined at vanishing signal; the estimate may fall below 0 by its error. nan without noise.
        signal_to_noise_stderr: its standard error.
        square_mean: unbiased estimate of |G|^2.
        variance: unbiased estimate of tr(Sigma).
        num_samples: N.
    """

    noise_scale: float
    noise_scale_stderr: float
    signal_to_noise: float
    signal_to_noise_stderr: float
    square_mean: float
    variance: float
    num_samples: int


def gradient_noise(kernel: Kernel | Tensor) -> GradientNoise:
    """Noise scale and signal-to-noise ratio of the gradient, unbiased in |G|^2 and tr(Sigma).

    |G|^2 is the mean of K_ij over i != j, and tr(Sigma) is the mean of K_ii less that. Standard errors are the
    jackknife's, which leaves out one sample after another.

    Args:
        kernel: K of one set of samples with itself, (N, N).

    Raises:
        InputError: not a symmetric kernel, or fewer than three samples.

    Cost: one pass over K.

    References: McCandlish et al. (2018), arXiv:1812.06162, equation 2.9; jackknife, Efron and Stein (1981).

    Example:
        >>> G = torch.tensor([[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]])
        >>> found = gradient_noise(G @ G.T)
        >>> variance = float(G.var(0).sum())
        >>> abs(found.variance - variance) < 1e-6 and abs(found.square_mean - (25 / 9 - variance / 3)) < 1e-6
        True
    """
    where = "gradient_noise"
    given = square_kernel(kernel, where)
    total, eps, n = given.double(), torch.finfo(given.dtype).eps, len(given)
    if n < 3:
        raise input_error(where, "three samples or more", f"{n}", "Pass a larger batch")
    whole, trace, rows, diagonal = total.sum(), total.diagonal().sum(), total.sum(1), total.diagonal()
    square, variance = _moments(whole, trace, n, eps)
    left = _moments(whole - 2 * rows + diagonal, trace - diagonal, n - 1, eps)  # without sample i, (N,)
    scale, scale_error = _ratio(variance, square, left[1], left[0])
    signal, signal_error = _ratio(square, variance, left[0], left[1])
    return GradientNoise(scale, scale_error, signal, signal_error, float(square), float(variance), n)


def _moments(kernel: Tensor, trace: Tensor, n: int, eps: float) -> tuple[Tensor, Tensor]:
    """|G|^2 and tr(Sigma) of n samples, from the sum of all entries of K and that of its diagonal."""
    square = (kernel - trace) / (n * (n - 1))
    variance = trace / n - square
    rounding = 4 * eps * trace / n  # of equal gradients nothing else is left, and it is no noise
    return square, torch.where(variance > rounding, variance, 0)


def _ratio(above: Tensor, below: Tensor, left_above: Tensor, left_below: Tensor) -> tuple[float, float]:
    """A ratio and its jackknife standard error; nan where it is not defined, for all samples or without one."""
    if not float(below) > 0:
        return math.nan, math.nan
    if not bool((left_below > 0).all()):
        return float(above / below), math.nan
    left = left_above / left_below
    n = len(left)
    return float(above / below), float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())
