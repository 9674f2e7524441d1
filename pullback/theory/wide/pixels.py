"""Which pixels of an image a filter or a window meets, and what sums over them do to covariances of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pullback.theory.expectations.activations import Array

Places = NDArray[np.intp]  # (offsets, outputs): pixels under a filter, numbered along the image; -1 is outside


def numbered(size: Sequence[int]) -> Places:
    """The pixels of an image by number, in its shape."""
    return np.arange(math.prod(size)).reshape(tuple(size))


def padded(image: Places, widths: Sequence[tuple[int, int]], mode: str) -> Places:
    """An image of numbers with a border: "zeros", "circular", "reflect" or "replicate"."""
    if mode == "zeros":
        return np.pad(image, widths, constant_values=-1)
    modes = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
    return np.pad(image, widths, mode=modes[mode])  # type: ignore[call-overload]


def windows(
    image: Places, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Places, tuple[int, ...]]:
    """Pixels under a filter at each of its places, and the size of the image it makes."""
    axes = list(zip(image.shape, kernel, stride, dilation, strict=True))
    size = tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in axes)
    if min(size) < 1:
        return np.empty((math.prod(kernel), 0), dtype=np.intp), size
    found = []
    for offset in product(*map(range, kernel)):
        cut = tuple(
            slice(o * d, o * d + s * (n - 1) + 1, s) for o, n, (_, _, s, d) in zip(offset, size, axes, strict=True)
        )
        found.append(image[cut].reshape(-1))
    return np.array(found), size


def filtered(covariance: Array, places: Places, *, pairs: bool) -> Array:
    """Sum over a filter's offsets, by which both pixels of a pair move: (..., P, P), or (..., P) of equal pixels."""
    axes = 2 if pairs else 1
    whole = np.pad(covariance, [(0, 0)] * (covariance.ndim - axes) + [(0, 1)] * axes)  # the last stands for outside
    shape = (places.shape[1],) * axes
    total = np.zeros((*covariance.shape[: covariance.ndim - axes], *shape))
    for moved in places:
        total += whole[..., moved[:, None], moved] if pairs else whole[..., moved]
    return total


def patches(images: Array, places: Places) -> Array:
    """What a filter meets at each of its places, channels and offsets together: (N, C, ...) to (N, outputs, K)."""
    whole = np.pad(images.reshape(*images.shape[:2], -1), ((0, 0), (0, 0), (0, 1)))  # the last stands for outside
    met = whole[:, :, places]  # (N, C, offsets, outputs)
    return met.reshape(len(met), -1, met.shape[-1]).swapaxes(1, 2)


def window_matrix(places: Places, pixels: int, divisors: Array) -> Array:
    """What a window does to pixels, as a matrix (outputs, pixels)."""
    counts = np.zeros((places.shape[1], pixels + 1))
    for moved in places:
        counts[np.arange(len(moved)), moved] += 1
    return counts[:, :pixels] / divisors[:, None]
