"""How far a kernel has moved, and how much of it points along the labels."""

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
class KernelDrift(Shown):
    """Change from a kernel K0 to K1 of the same samples.

    Attributes:
        drift: |K1 - K0|_F / |K0|_F: size and direction. nan where K0 is 0.
        alignment: <K0, K1> / (|K0| |K1|): 1 if only the size has changed. nan where one of them is 0.
        cka: the same after centring both, which takes out what all samples share; nan where nothing is left.
    """

    drift: float
    alignment: float
    cka: float


def kernel_drift(k0: Kernel | Tensor, k1: Kernel | Tensor) -> KernelDrift:
    """How far the kernel of some samples has moved between two sets of weights.

    A network in the linear ("lazy") regime keeps its tangent kernel; one that learns features turns it.

    Args:
        k0: the earlier kernel, (N, N), backward or tangent, or any symmetric tensor.
        k1: the later one, of the same samples in the same order.

    Raises:
        InputError: kernels that are not symmetric, or of different shapes.

    Cost: one pass over both.

    References: Cortes, Mohri and Rostamizadeh (2012), for centred alignment; Fort et al. (2020), arXiv:2010.15110.

    Example:
        >>> k = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> found = kernel_drift(k, 3 * k)
        >>> round(found.drift, 6), round(found.alignment, 6), round(found.cka, 6)
        (2.0, 1.0, 1.0)
    """
    where = "kernel_drift"
    given = [square_kernel(k, where) for k in (k0, k1)]
    eps = max(torch.finfo(k.dtype).eps for k in given)
    before, after = (k.double() for k in given)
    if before.shape != after.shape:
        got = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise input_error(where, "two kernels of the same samples", got, "Measure both with the same samples")
    size = float(before.norm())
    moved = float((after - before).norm()) / size if size > 0 else math.nan
    return KernelDrift(moved, cosine(before, after), cosine(centred(before, eps), centred(after, eps)))


def centred(k: Tensor, eps: float) -> Tensor:
    """Inner products of rows less their mean; 0 where only rounding is left of them."""
    centred = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    return centred if float(centred.abs().max()) > 10 * eps * float(k.abs().max()) else torch.zeros_like(k)


def cosine(a: Tensor, b: Tensor) -> float:
    """Frobenius inner product over both norms; nan where one is 0."""
    norms = float(a.norm()) * float(b.norm())
    return min(1.0, max(-1.0, float((a * b).sum()) / norms)) if norms > 0 else math.nan
