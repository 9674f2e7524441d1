"""Algorithms that take an operator and never see a model."""

from pullback.spectral.convexity import ConvexityCheck, is_convex_between
from pullback.spectral.density import Density, spectral_density
from pullback.spectral.diagonal import diagonal
from pullback.spectral.inertia import MorseIndex, is_positive_definite, loewner_order, morse_index
from pullback.spectral.lanczos import Eigenpairs, eigenvalues
from pullback.spectral.neumann import neumann_solve
from pullback.spectral.norms import frobenius_norm, spectral_norm
from pullback.spectral.rayleigh import rayleigh_quotient
from pullback.spectral.solve import solve
from pullback.spectral.stationary import StationaryPoint, classify_stationary_point
from pullback.spectral.trace import trace
from pullback.spectral.tridiagonal import largest_eigenvalues

__all__ = [
    "ConvexityCheck",
    "Density",
    "Eigenpairs",
    "MorseIndex",
    "StationaryPoint",
    "classify_stationary_point",
    "diagonal",
    "eigenvalues",
    "frobenius_norm",
    "is_convex_between",
    "is_positive_definite",
    "largest_eigenvalues",
    "loewner_order",
    "morse_index",
    "neumann_solve",
    "rayleigh_quotient",
    "solve",
    "spectral_density",
    "spectral_norm",
    "trace",
]
