"""Kernels of infinitely wide convolutional networks: covariances of pixels, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from pullback._checks import check_option, input_error
from pullback.theory.checks import check_depth, check_sigmas
from pullback.theory.expectations.activations import Activation, Array, activation_of
from pullback.theory.wide.infinite_width import check_parametrisation
from pullback.theory.wide.nonlinear import activated
from pullback.theory.wide.pixels import Places, numbered, padded, windows
from pullback.theory.wide.signals import Weighted, convolution, dense, of_inputs, pooled

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
    places = _places(size, kernel_size, padding, where)

    def layer(number: int, terms: int) -> Weighted:
        """Layer ``number``, whose filter has this many entries a channel."""
        variance, width = sigma_w**2 / terms, a.shape[1] if number == 0 else channels
        name = str(number)
        if standard and width is not None:
            return Weighted(variance, sigma_b**2, width, 1.0, name)
        return Weighted(variance, sigma_b**2, variance, sigma_b**2, name)

    signal = of_inputs(a, b, channels_last=False, pairs=readout == "mean")
    for number in range(depth):
        signal = activated(convolution(signal, layer(number, len(places)), places, size), phi)
    if readout == "mean":
        out = dense(pooled(signal, np.full((1, signal.pixels), 1 / signal.pixels), ()), layer(depth, 1))
        return out.nngp[..., 0, 0], out.ntk[..., 0, 0]
    out = dense(replace(signal, flat=True), layer(depth, signal.pixels))
    return out.nngp[..., 0], out.ntk[..., 0]


def _images(x: ArrayLike, name: str, where: str) -> Array:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim not in (3, 4) or not array.size or not np.isfinite(array).all():
        got = f"shape {array.shape}" if array.ndim not in (3, 4) or not array.size else "NaN or infinity"
        raise input_error(where, f"finite `{name}` (N, C, H, W) or (N, C, T)", got, "Pass images or sequences")
    return array


def _places(size: tuple[int, ...], kernel_size: int, padding: str, where: str) -> Places:
    """Pixels under the filter, (offsets, P)."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise input_error(where, "an odd `kernel_size`", repr(kernel_size), "Pass 1, 3, 5, …")
    reach = kernel_size // 2
    if reach > min(size):
        raise input_error(
            where, f"a filter that reaches at most {min(size)} pixels", f"{reach}", "Pass a smaller `kernel_size`"
        )
    axes, mode = len(size), "zeros" if padding == "zero" else padding
    image = padded(numbered(size), [(reach, reach)] * axes, mode)
    return windows(image, (kernel_size,) * axes, (1,) * axes, (1,) * axes)[0]
