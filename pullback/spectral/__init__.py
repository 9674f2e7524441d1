"""Algorithms that take an operator and never see a model."""

from pullback.spectral.density import Density, spectral_density
from pullback.spectral.diagonal import diagonal
from pullback.spectral.lanczos import Eigenpairs, eigenvalues
from pullback.spectral.norms import frobenius_norm, spectral_norm
from pullback.spectral.solve import solve
from pullback.spectral.trace import trace
from pullback.spectral.tridiagonal import largest_eigenvalues

__all__ = [
    "Density",
    "Eigenpairs",
    "diagonal",
    "eigenvalues",
    "frobenius_norm",
    "largest_eigenvalues",
    "solve",
    "spectral_density",
    "spectral_norm",
    "trace",
]
