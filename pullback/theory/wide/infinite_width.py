"""Kernels of infinitely wide networks: of the outputs at initialisation (NNGP) and of training (NTK)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pullback._checks import check_option, input_error
from pullback.theory.checks import check_depth, check_sigmas
from pullback.theory.expectations.activations import Activation, Array, activation_of
from pullback.theory.wide.nonlinear import activated
from pullback.theory.wide.signals import Weighted, dense, of_inputs


def infinite_width_kernels(
    activation: str | Callable[..., object] | Activation,
    depth: int,
    sigma_w: float,
    sigma_b: float,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    parametrisation: str = "ntk",
    *,
    width: int | None = None,
    by_layer: bool = False,
) -> tuple[Array, Array]:
    """NNGP and NTK kernels of a fully connected network with one output, between two sets of inputs.

    With S_0 = x x'^T / d and, for l = 1 .. depth + 1, S_l = sigma_w^2 E phi(u) phi(v) + sigma_b^2 (phi left out for
    l = 1), the NNGP kernel is S_{depth + 1}. The NTK, all weights and biases trained, is

        "ntk":      T_1 = S_1,  T_l = S_l + sigma_w^2 E phi'(u) phi'(v) T_{l-1};
                    W, b ~ N(0, 1), scaled in the forward pass
        "standard": sum over layers of (fan_in E phi phi + 1) times the product of later sigma_w^2 E phi' phi';
                    W ~ N(0, sigma_w^2 / fan_in), b ~ N(0, sigma_b^2), so that it grows with the width

    Args:
        activation: as of ``MeanField``.
        depth: hidden layers.
        sigma_w: of the weights.
        sigma_b: of the biases; with "standard" biases are trained also where it is 0.
        x1: inputs, (N1, d).
        x2: other inputs, (N2, d); None for those of ``x1``.
        parametrisation: "ntk" or "standard".
        width: of the hidden layers, needed by "standard" alone.
        by_layer: return the NTK by the layer whose weights and biases make it.

    Returns:
        (nngp, ntk), each (N1, N2) in float64; the ntk (depth + 1, N1, N2) with ``by_layer``, first layer first.

    Raises:
        InputError: inputs that are no finite matrices of one width; depth < 1; a missing or needless ``width``.

    Cost: depth times N1 N2 expectations: closed forms for piecewise linear activations, erf, GELU and sine, series for
        others.

    References: Lee et al. (2018), arXiv:1711.00165; Jacot et al. (2018), arXiv:1806.07572.

    Example:
        >>> nngp, ntk = infinite_width_kernels("relu", 1, 2**0.5, 0.0, [[1.0, 0.0, 0.0]])
        >>> round(float(nngp[0, 0]), 6), round(float(ntk[0, 0]), 6)
        (0.666667, 1.333333)
    """
    where = "infinite_width_kernels"
    phi = activation_of(activation, where)
    check_depth(where, depth)
    check_sigmas(where, sigma_w, sigma_b)
    standard = check_parametrisation(where, parametrisation, "width", width)
    a = _inputs(x1, "x1", where)
    b = a if x2 is None else _inputs(x2, "x2", where)
    if a.shape[1] != b.shape[1]:
        raise input_error(where, f"`x2` (N2, {a.shape[1]})", f"{b.shape}", "Pass inputs of one width")
    signal = of_inputs(a, b, channels_last=True, pairs=False)
    kernels = np.eye(depth + 1) if by_layer else np.ones((depth + 1, 1))  # which of them hold a layer's own part
    for layer, alone in enumerate(kernels[:, :, None, None, None]):
        own = (sigma_w**2, sigma_b**2) if not standard else (a.shape[1] if layer == 0 else width or 0, 1.0)
        signal = dense(signal, Weighted(sigma_w**2, sigma_b**2, own[0] * alone, own[1] * alone, str(layer)))
        if layer < depth:
            signal = activated(signal, phi)
    nngp, ntk = signal.nngp[..., 0], signal.ntk[..., 0]
    return nngp, ntk if by_layer else ntk[0]


def check_parametrisation(where: str, parametrisation: str, name: str, size: int | None) -> bool:
    """Whether it is the standard one, which alone depends on a size of the hidden layers."""
    check_option(where, "parametrisation", parametrisation, ("ntk", "standard"))
    standard = parametrisation == "standard"
    if (size is None) == standard:
        given, remedy = ("None", f"Pass {name}=") if size is None else (repr(size), "Leave it out")
        expected = f"`{name}` for the standard parametrisation alone ({parametrisation} here)"
        raise input_error(where, expected, given, remedy)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise input_error(where, f"`{name}` of at least 1", repr(size), "Pass a number of units")
    return standard


def _inputs(x: ArrayLike, name: str, where: str) -> Array:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        got = f"shape {array.shape}" if array.ndim != 2 or not array.size else "NaN or infinity"
        raise input_error(where, f"finite `{name}` (N, d)", got, "Pass a matrix of inputs")
    return array
