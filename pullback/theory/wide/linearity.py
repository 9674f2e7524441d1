"""When the tangent kernel is constant, predicted: constants of activations, limits, slopes, and bounds on a ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.theory.expectations.activations import Activation, Array, Function, activation_of
from pullback.theory.wide.infinite_width import infinite_width_kernels

_SCAN = np.linspace(-40.0, 40.0, 80_001)  # a thousandth apart; derivatives of usual activations live near 0
_ROUNDS = 6  # of refinement, each by a factor of 50


@dataclass(frozen=True)
class SmoothnessConstants(Shown):
    """Suprema over all inputs between -40 and 40.

    Attributes:
        beta: of |sigma''|: sigma is beta-smooth. inf where sigma' jumps.
        lipschitz: of |sigma'|.
    """

    beta: float
    lipschitz: float


def smoothness_constants(activation: str | Callable[..., object] | Activation) -> SmoothnessConstants:
    """How smooth an activation is: what bounds the Hessian of a wide network.

    Args:
        activation: as of ``MeanField``, or any elementwise torch function (``torch.sigmoid``).

    Raises:
        InputError: as of ``MeanField``.

    Cost: 80,000 evaluations of both derivatives.

    Example:
        >>> found = smoothness_constants("tanh")
        >>> round(found.beta, 6), round(found.lipschitz, 6)  # 4 / (3 sqrt(3))
        (0.7698, 1.0)
    """
    phi = activation_of(activation, "smoothness_constants")
    return SmoothnessConstants(math.inf if phi.kinks else _largest(phi.bend), _largest(phi.slope))


def _largest(function: Function) -> float:
    """The largest absolute value, from the best point of a grid that is refined around it."""
    at = _SCAN
    for _ in range(_ROUNDS):
        values = np.abs(function(at))
        best, step = at[int(values.argmax())], at[1] - at[0]
        at = np.linspace(best - step, best + step, 101)
    return float(values.max())


def wide_network_kernels(
    activation: str | Callable[..., object] | Activation,
    depth: int,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    train_output: bool = False,
) -> tuple[Array, Array]:
    """Limits of ``modules.WideNetwork`` with a linear output: covariance of the outputs, and tangent kernel.

    With K_0 = x x'^T / d and K_l = E sigma(u) sigma(v) the covariance is K_L, and the tangent kernel of the hidden
    layers' weights is the sum over l of K_{l-1} times the product of E sigma'(u) sigma'(v) from layer l to L; training
    the output adds K_L. For one hidden layer and one input number K(x, x) is x^2 E sigma'(w x)^2, w ~ N(0, 1).

    Args:
        activation: as of ``MeanField``, or an elementwise torch function.
        depth: L, the hidden layers.
        x1: inputs, (N1, d).
        x2: other inputs, (N2, d); None for those of ``x1``.
        train_output: whether V is trained.

    Returns:
        (covariance, tangent kernel), each (N1, N2), for each of the outputs.

    Raises:
        InputError: see ``infinite_width_kernels``, which this is, without biases and with the last layer's part apart.

    Example:
        >>> _, kernel = wide_network_kernels("tanh", 1, [[1.0]])
        >>> round(float(kernel[0, 0]), 6)
        0.464403
    """
    nngp, parts = infinite_width_kernels(activation, depth, 1.0, 0.0, x1, x2, by_layer=True)
    return nngp, parts.sum(0) if train_output else parts[:-1].sum(0)


def hessian_slope(depth: int, narrowest: float, widest: float, *, linear: bool = True) -> float:
    """Slope of log |H| against log m between two widths, H the Hessian of an output at initialisation.

    -1/2 for one hidden layer. With more |H| goes with max_i |df/da_i|, the largest of m Gaussian entries, which is
    sqrt(2 log m / m): -1/2 + log(log m_2 / log m_1) / (2 log(m_2 / m_1)). 0 where the output is not linear or a hidden
    layer's width stays.

    Args:
        depth: hidden layers.
        narrowest: m_1, above 1.
        widest: m_2, above m_1.
        linear: whether the output is linear and every hidden layer is wide.

    Raises:
        InputError: widths that do not ascend from above 1.

    Example:
        >>> round(hessian_slope(2, 64, 1024), 6)
        -0.407879
    """
    if not 1 < narrowest < widest:
        got = f"{narrowest:g} and {widest:g}"
        raise input_error("hessian_slope", "1 < `narrowest` < `widest`", got, "Pass two widths in ascending order")
    if not linear:
        return 0.0
    if depth == 1:
        return -0.5
    return -0.5 + math.log(math.log(widest) / math.log(narrowest)) / (2 * math.log(widest / narrowest))


def kernel_change_bound(
    radius: ArrayLike, hessian_norm: ArrayLike, gradient_norm: ArrayLike, gradient_norm2: ArrayLike
) -> Array:
    """Most that K(x, x') can change within a ball: R e (|g| + |g'|) + (R e)^2, elementwise.

    Args:
        radius: R, of the ball around the starting weights.
        hessian_norm: e, the largest spectral norm within it of the Hessians at x and x'.
        gradient_norm: |g|, of the output at x at the starting weights.
        gradient_norm2: |g'|, of the output at x'.

    References: g moves by at most R e, so |g1 g1' - g g'| <= |g1 - g| |g'| + |g| |g1' - g'| + |g1 - g| |g1' - g'|.

    Example:
        >>> float(kernel_change_bound(2.0, 0.1, 1.0, 1.5))
        0.54
    """
    moved = np.asarray(radius, dtype=np.float64) * np.asarray(hessian_norm, dtype=np.float64)
    return np.asarray(moved * (np.asarray(gradient_norm) + np.asarray(gradient_norm2)) + moved**2)


def path_radius(beta: float, mu: float, loss: float) -> float:
    """R = 2 sqrt(2 beta L_0) / mu, the ball gradient descent stays in at rates up to 1 / beta.

    The steps eta |grad L| sum up to no more where L is beta-smooth and |grad L|^2 / 2 >= mu L in the ball (PL*); then
    L_t <= (1 - eta mu)^t L_0 as well. With |grad L|^2 >= mu L in its place the radius is twice that.

    Args:
        beta: largest eigenvalue of the loss's Hessian in the ball.
        mu: the PL* constant; of half the squared error summed over samples the smallest eigenvalue of the kernel.
        loss: L_0, at the start.

    Raises:
        InputError: a constant that is not positive, a loss below 0.

    Example:
        >>> path_radius(1.0, 1.0, 4.5)  # (w - 3)^2 / 2 from w = 0
        6.0
    """
    check_positive("path_radius", "beta", beta)
    check_positive("path_radius", "mu", mu)
    if not loss >= 0:
        raise input_error("path_radius", "a `loss` of at least 0", f"{loss:g}", "Subtract the smallest loss there is")
    return 2 * math.sqrt(2 * beta * loss) / mu


def output_hessian_bound(slope: ArrayLike, bend: ArrayLike, gradient_norm: ArrayLike, hessian_norm: ArrayLike) -> Array:
    """Least spectral norm of the Hessian of phi(f): |phi''(f)| |g|^2 - |phi'(f)| |H|, elementwise.

    It is phi''(f) g g^T + phi'(f) H; the bound is the triangle inequality, and says nothing where phi''(f) is 0, as it
    is for tanh at f = 0.

    Args:
        slope: phi'(f).
        bend: phi''(f).
        gradient_norm: |g|, of f.
        hessian_norm: |H|, of f.

    Example:
        >>> float(output_hessian_bound(0.5, 0.25, 2.0, 0.1))
        0.95
    """
    first = np.abs(np.asarray(bend, dtype=np.float64)) * np.asarray(gradient_norm) ** 2
    return np.asarray(first - np.abs(np.asarray(slope)) * np.asarray(hessian_norm))
