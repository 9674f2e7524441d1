"""Comparisons that raise: relative to the size of what is expected, with one tolerance a dtype."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


def assert_same(found: Tensor, expected: Tensor, tolerance: float | None = None, *, scale: float | None = None) -> None:
    """|found - expected| at most ``tolerance`` times the largest entry of ``expected`` (or ``scale``)."""
    assert found.shape == expected.shape, f"shape {tuple(found.shape)} is not {tuple(expected.shape)}"
    assert torch.isfinite(found).all(), "entries that are not finite"
    limit = TOLERANCE[found.dtype] if tolerance is None else tolerance
    size = float(expected.abs().max()) if scale is None else scale
    error = float((found.to(expected.dtype) - expected).abs().max()) if found.numel() else 0.0
    assert error <= limit * max(size, 1e-300), f"error {error:.3e} where {limit * size:.3e} is allowed"


def assert_different(found: Tensor, expected: Tensor, at_least: float) -> None:
    """The two differ by at least so much, relatively: used to show that a comparison can fail."""
    error = float((found - expected).abs().max()) / float(expected.abs().max())
    assert error >= at_least, f"relative difference {error:.3e} is below {at_least}"
