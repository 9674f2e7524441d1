"""Eigenvalues and eigenvectors of K and of each layer's block, with what is below rounding error marked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._results import Drawn
from pullback.diagnostics.moments import square_kernel
from pullback.kernels import Kernel


@dataclass(frozen=True)
class Spectrum(Drawn):
    """Eigen-decomposition of a kernel K = G G^T. Its non-zero eigenvalues are those of G^T G.

    Attributes:
        eigenvalues: (N,), descending; the squared singular values of G.
        eigenvectors: (N, N), one a column: directions among the samples.
        noise_floor: eigenvalues at or below it are rounding error of the dtype the kernel was computed in.
    """

    eigenvalues: Tensor
    eigenvectors: Tensor
    noise_floor: float

    @property
    def rank(self) -> int:
        """Eigenvalues above the noise floor."""
        return int((self.eigenvalues > self.noise_floor).sum())

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue, infinite if the smallest is not above the noise floor."""
        smallest = float(self.eigenvalues[-1])
        return float(self.eigenvalues[0]) / smallest if smallest > self.noise_floor else float("inf")

    @property
    def nonzero_condition_number(self) -> float:
        """Largest over smallest eigenvalue among those above the noise floor; NaN for a zero kernel."""
        kept = self.eigenvalues[: self.rank]
        return float(kept[0] / kept[-1]) if len(kept) else float("nan")


def spectrum(kernel: Kernel | Tensor) -> Spectrum:
    """Eigenvalues and eigenvectors of K, dense, in float64.

    Raises:
        InputError: not a symmetric kernel.

    Cost: about 9 N^3 operations and three (N, N) matrices of float64.

    Example:
        >>> spectrum(torch.diag(torch.tensor([1.0, 4.0]))).eigenvalues.tolist()
        [4.0, 1.0]
    """
    total = square_kernel(kernel, "spectrum")
    values, vectors = torch.linalg.eigh(total.double())
    values, vectors = values.flip(0), vectors.flip(1)
    floor = len(total) * torch.finfo(total.dtype).eps * max(0.0, float(values[0]))
    return Spectrum(values, vectors, floor)


def layer_spectra(kernel: Kernel) -> dict[str, Spectrum]:
    """``spectrum`` of every layer's block, in the order of the forward pass.

    Args:
        kernel: symmetric, as ``backward_kernel`` and ``tangent_kernel`` return it.

    Returns:
        Layer -> Spectrum.

    Raises:
        InputError: as ``spectrum``.

    Cost: that of ``spectrum`` for every layer.

    Example:
        >>> from torch import nn
        >>> from pullback import backward_kernel
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x, y = torch.randn(5, 3), torch.randn(5, 2)
        >>> spectra = layer_spectra(backward_kernel(model, nn.MSELoss(), x, y))
        >>> {layer: len(found.eigenvalues) for layer, found in spectra.items()}
        {'0': 5, '2': 5}
    """
    return {layer: spectrum(block) for layer, block in kernel.layers.items()}
