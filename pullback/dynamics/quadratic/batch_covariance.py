"""How much a mini-batch's mean varies, drawn with replacement or without."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pullback._checks import check_count, input_error
from pullback.dynamics.quadratic.values import values


def batch_covariance(gradients: Any, batch_size: int, *, replacement: bool = False) -> Tensor:
    """Covariance of the mean gradient of a mini-batch drawn from N samples, exactly.

    With the covariance V of single samples (of the N given, divided by N): V / S for batches of S drawn with
    replacement; V / S * (N - S) / (N - 1) without, which is 0 for the whole.

    Args:
        gradients: of the N samples, (N, P), or numbers (N,).
        batch_size: S.
        replacement: whether a sample can be drawn twice.

    Returns:
        (P, P); a number for numbers.

    Raises:
        InputError: a batch size below 1, or above N without replacement; a shape other than these.

    Cost: N P^2.

    Example:
        >>> population = list(range(10))
        >>> batch_covariance(population, 4, replacement=True).item(), batch_covariance(population, 4).item()
        (2.0625, 1.375)
    """
    where = "batch_covariance"
    G = values(gradients, "gradients", where)
    if G.dim() not in (1, 2) or not len(G):
        raise input_error(where, "gradients (N, P) or (N,)", f"shape {tuple(G.shape)}", "Pass one row a sample")
    N, S = len(G), check_count(where, "batch_size", batch_size, 1)
    if S > N and not replacement:
        remedy = "Pass replacement=True, or a smaller batch"
        raise input_error(where, f"a batch of at most the {N} samples without replacement", str(S), remedy)
    centred = G - G.mean(0)
    V = centred.square().mean() if G.dim() == 1 else centred.T @ centred / N
    return V / S if replacement or N == 1 else V / S * ((N - S) / (N - 1))
