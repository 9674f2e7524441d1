"""Means of few random samples, with standard errors that hold."""

from __future__ import annotations

import torch
from torch import Tensor


def student(freedom: int) -> float:
    """Factor by which three standard errors of ``freedom`` + 1 samples cover what three of infinitely many do."""
    from scipy.special import ndtr, stdtrit

    return float(stdtrit(freedom, ndtr(3.0))) / 3.0


def mean_and_stderr(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first axis, at least two samples, and its standard error widened by Student's distribution."""
    count = len(samples)
    return samples.mean(0), samples.std(0) * (student(count - 1) / count**0.5)


def rounding(size: float, dtype: torch.dtype) -> float:
    """Standard error that rounding leaves in a sum of terms of total size ``size``."""
    return 10 * torch.finfo(dtype).eps * size
