"""What becomes of a gradient before an optimizer sees it: noise, then clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_positive, input_error
from pullback._rng import make_generator
from pullback.dynamics.quadratic.noisy_limit import covariance_of

Clip = Callable[[Tensor], Tensor]
TINY = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


def clip_norm(most: float) -> Clip:
    """Gradients (..., d) scaled down to at most this norm, as ``torch.nn.utils.clip_grad_norm_``, each by itself.

    Raises:
        InputError: a norm that is not positive.

    Example:
        >>> clip_norm(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    check_positive("clip_norm", "most", most)

    def clip(g: Tensor) -> Tensor:
        factor = most / (torch.linalg.vector_norm(g, dim=-1, keepdim=True) + TINY)
        return g * factor.clamp(max=1.0)

    return clip


def clip_value(most: float) -> Clip:
    """Gradients (..., d) with each entry between -most and most, as ``torch.nn.utils.clip_grad_value_``.

    Raises:
        InputError: a value that is not positive.

    Example:
        >>> clip_value(0.5)(torch.tensor([3.0, -0.2]))
        tensor([ 0.5000, -0.2000])
    """
    check_positive("clip_value", "most", most)
    return lambda g: g.clamp(-most, most)


def check_clip(clip: object, where: str) -> None:
    """Refuse a clip that cannot be called.

    Raises:
        InputError: it cannot.
    """
    if clip is not None and not callable(clip):
        remedy = "Pass dynamics.clip_norm(1.0), say"
        raise input_error(where, "`clip`: gradients -> gradients", type(clip).__name__, remedy)


def clipped(clip: Clip, g: Tensor) -> Tensor:
    """What a clip makes of gradients.

    Raises:
        InputError: something of another shape.
    """
    result: object = clip(g)
    if not isinstance(result, Tensor) or result.shape != g.shape:
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise input_error("simulate", f"`clip` to return gradients {tuple(g.shape)}", got, "Return them, clipped")
    return result


class Noise:
    """Gaussian noise of one covariance, its own stream for every seed, so that each can be repeated alone."""

    def __init__(self, covariance: Any, seeds: Sequence[int], like: Tensor, where: str) -> None:
        C = None if covariance is None else covariance_of(covariance, like.shape[-1], where)
        self._root: Tensor | None = None
        if C is not None:
            values, vectors = torch.linalg.eigh(C)
            self._root = (vectors * values.clamp(min=0).sqrt()).T.to(like.dtype)
        self._streams = [make_generator(seed) for seed in seeds]

    def draw(self, shape: torch.Size) -> Tensor | None:
        """For gradients of this shape: (seeds, ..., d), or (..., d) of a single seed; None without noise."""
        if self._root is None:
            return None
        single = len(self._streams) == 1
        inner = shape if single else shape[1:]
        drawn = [
            torch.randn(inner, generator=each, dtype=self._root.dtype, device=each.device) for each in self._streams
        ]
        return (drawn[0] if single else torch.stack(drawn)) @ self._root
