"""Algorithms that take an operator and never see a model."""

from pullback.spectral.lanczos import Eigenpairs, eigenvalues, largest_eigenvalues

__all__ = ["Eigenpairs", "eigenvalues", "largest_eigenvalues"]
