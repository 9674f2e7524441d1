"""Kernels of infinitely wide convolutional networks: covariances of pixels, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pullback._checks import check_option, input_error
from pullback.theory.activations import Activation, Array, activation_of
from pullback.theory.curves import check_depth
from pullback.theory.infinite_width import check_parametrisation
from pullback.theory.mean_field import check_sigmas
from pullback.theory.pairs import pair_means, second_moments

PADDINGS, READOUTS = ("circular", "zero"), ("flatten", "mean")


def convolutional_kernels(
    activation: str | Callable[..., object] | Activation,
    depth: int,
    sigma_w: float,
    sigma_b: float,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    parametrisation: str = "ntk",
    *,
    kernel_size: int = 3,
    padding: str = "circular",
    readout: str = "flatten",
    channels: int | None = None,
) -> tuple[Array, Array]:
    """NNGP and NTK kernels of a convolutional network with one output, between two sets of images.

    ``depth`` convolutions of stride 1, each followed by phi, keep the image's size; a linear read-out follows, of all
    pixels ("flatten") or of each channel's mean over pixels ("mean": global average pooling). For pixels p, p' of two
    images, S_0(p, p') is the mean of x(p) x'(p') over input channels, and

        S_l(p, p') = sigma_w^2 A[E phi phi](p, p') + sigma_b^2,   T_l = S_l + sigma_w^2 A[E phi' phi' T_{l-1}]

    with A the mean over the filter's offsets d of what stands at (p + d, p' + d), zero outside the image for padding
    "zero", and phi left out for l = 1. The read-out is another such layer, A being the mean over p = p' ("flatten") or
    over all pairs of pixels ("mean"). In the standard parametrisation the layer's own term in T_l is
    fan_in A[E phi phi] + 1 in place of S_l.

    Args:
        activation: as of ``MeanField``.
        depth: convolutions.
        sigma_w: of the weights, N(0, sigma_w^2 / fan_in) with fan_in = channels times pixels of the filter.
        sigma_b: of the biases; with "standard" biases are trained also where it is 0.
        x1: images, (N1, C, H, W), or sequences (N1, C, T).
        x2: other images, (N2, C, H, W); None for those of ``x1``.
        parametrisation: "ntk" or "standard".
        kernel_size: of the filters along every axis, odd.
        padding: "circular" or "zero".
        readout: "flatten" or "mean".
        channels: of the hidden layers, needed by "standard" alone.

    Returns:
        (nngp, ntk), each (N1, N2) in float64.

    Raises:
        InputError: inputs that are no finite images of one size; an even ``kernel_size`` or one that reaches around
            the image more than once; an unknown option; missing or needless ``channels``; see ``MeanField``.

    Cost: expectations for depth times N1 N2 P pairs of pixels with "flatten" and N1 N2 P^2 with "mean", P pixels an
        image, and as much memory.

    References: Novak et al. (2019), arXiv:1810.05148, section 3; Arora et al. (2019), arXiv:1904.11955, section 4.

    Example:
        >>> image = np.arange(18.0).reshape(1, 2, 3, 3) / 10
        >>> nngp, ntk = convolutional_kernels("relu", 2, 2**0.5, 0.0, image)
        >>> round(float(nngp[0, 0]), 4), round(float(ntk[0, 0]), 4), round(float((image**2).mean() * 2), 4)
        (1.9833, 5.95, 1.9833)
    """
    where = "convolutional_kernels"
    phi = activation_of(activation, where)
    check_depth(where, depth)
    check_sigmas(where, sigma_w, sigma_b)
    check_option(where, "padding", padding, PADDINGS)
    check_option(where, "readout", readout, READOUTS)
    standard = check_parametrisation(where, parametrisation, "channels", channels)
    a = _images(x1, "x1", where)
    b = a if x2 is None else _images(x2, "x2", where)
    if a.shape[1:] != b.shape[1:]:
        shape = ", ".join(map(str, a.shape[1:]))
        raise input_error(where, f"`x2` (N2, {shape})", f"{b.shape}", "Pass images of one size")
    size = a.shape[2:]
    neighbours, pixels = _neighbours(size, kernel_size, padding, where), math.prod(size)
    every = readout == "mean"  # whether all pairs of pixels count, or equal ones alone
    second = _inner(a, b, every)
    lengths = [(x * x).mean(1).reshape(len(x), pixels) for x in (a, b)]
    tangent = np.zeros_like(second)
    for layer in range(depth + 1):
        width = a.shape[1] if layer == 0 else channels
        if layer < depth:
            second, tangent = (_filtered(each, neighbours, every) for each in (second, tangent))
            terms = len(neighbours)
        else:
            second, tangent = (each.mean((-1, -2) if every else -1) for each in (second, tangent))
            terms = 1 if every else pixels
        kernel = sigma_w**2 * second + sigma_b**2
        own = width * terms * second + 1 if standard and width is not None else kernel
        tangent = own + sigma_w**2 * tangent
        if layer == depth:
            break
        lengths = [sigma_w**2 * _filtered(q, neighbours, every=False) + sigma_b**2 for q in lengths]
        second, slopes = _pairs(phi, kernel, lengths[0], lengths[1], every)
        lengths = [second_moments(phi, q) for q in lengths]
        tangent = slopes * tangent
    return kernel, tangent


def _images(x: ArrayLike, name: str, where: str) -> Array:
    found = np.asarray(x, dtype=np.float64)
    if found.ndim not in (3, 4) or not found.size or not np.isfinite(found).all():
        got = f"shape {found.shape}" if found.ndim not in (3, 4) or not found.size else "NaN or infinity"
        raise input_error(where, f"finite `{name}` (N, C, H, W) or (N, C, T)", got, "Pass images or sequences")
    return found


def _neighbours(size: tuple[int, ...], kernel_size: int, padding: str, where: str) -> NDArray[np.intp]:
    """Pixels under the filter, (offsets, P), numbered along the image; P itself stands for outside."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise input_error(where, "an odd `kernel_size`", repr(kernel_size), "Pass 1, 3, 5, …")
    reach = kernel_size // 2
    if reach > min(size):
        raise input_error(
            where, f"a filter that reaches at most {min(size)} pixels", f"{reach}", "Pass a smaller `kernel_size`"
        )
    at = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).reshape(-1, len(size))
    found = []
    for offset in product(range(-reach, reach + 1), repeat=len(size)):
        moved = at + np.array(offset)
        inside = ((moved >= 0) & (moved < size)).all(1) | (padding == "circular")
        found.append(np.where(inside, np.ravel_multi_index(tuple(moved.T % np.array(size)[:, None]), size), len(at)))
    return np.array(found)


def _inner(a: Array, b: Array, every: bool) -> Array:
    """Mean over channels of x(p) x'(p'), (N1, N2, P, P), or of equal pixels, (N1, N2, P)."""
    a, b = a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)
    return np.einsum("acp,bcq->abpq" if every else "acp,bcp->abp", a, b, optimize=True) / a.shape[1]


def _filtered(kernel: Array, neighbours: NDArray[np.intp], every: bool) -> Array:
    """A: mean over the filter's offsets, which both pixels of a pair move by."""
    axes = 2 if every else 1
    padded = np.pad(kernel, [(0, 0)] * (kernel.ndim - axes) + [(0, 1)] * axes)
    total = np.zeros_like(kernel)
    for moved in neighbours:
        total += padded[..., moved[:, None], moved] if every else padded[..., moved]
    return total / len(neighbours)


def _pairs(phi: Activation, kernel: Array, left: Array, right: Array, every: bool) -> tuple[Array, Array]:
    """E phi phi and E phi' phi' of pairs of pixels with variances ``left`` (N1, P) and ``right`` (N2, P)."""
    if not every:
        each = [pair_means(phi, kernel[..., p], left[:, p], right[:, p]) for p in range(left.shape[1])]
        return np.stack([value for value, _ in each], -1), np.stack([slope for _, slope in each], -1)
    n1, n2, pixels, _ = kernel.shape
    matrix = kernel.transpose(0, 2, 1, 3).reshape(n1 * pixels, n2 * pixels)
    found = pair_means(phi, matrix, left.ravel(), right.ravel())
    values, slopes = (each.reshape(n1, pixels, n2, pixels).transpose(0, 2, 1, 3) for each in found)
    return values, slopes
