"""Layers of a followed network that act on positions alone: pooling, means, borders, flattening."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pullback.theory.wide import convolution_settings as settings
from pullback.theory.wide.signals import Signal, moved, pooled
from pullback.theory.wide.tracing import Step

Refused = Callable[[Step, str], Exception]


def pooled_by(refused: Refused, step: Step, s: Signal, how: settings.Pool) -> Signal:
    """An average pool."""
    if s.channels_last or s.flat or not s.size:
        raise refused(step, "pooling of what has no positions,")
    matrix, size = how.matrix(s.size)
    return pooled(s, matrix, size)


def mean_of(refused: Refused, step: Step, s: Signal, *, keep: bool, total: bool = False) -> Signal:
    """The mean or, with ``total``, the sum over all positions."""
    if s.flat or not s.size:
        raise refused(step, "a mean over units,")
    matrix = np.full((1, s.pixels), 1.0 if total else 1 / s.pixels)
    return pooled(s, matrix, (1,) * len(s.size) if keep else ())


def flattened(refused: Refused, step: Step, s: Signal, start: int, end: int) -> Signal:
    """Units and positions in one axis."""
    axes = 2 + len(s.size) if not s.flat else 2
    if start % axes != 1 or end % axes != axes - 1:
        raise refused(step, f"flattening of axes {start} to {end},")
    return replace(s, flat=s.flat or bool(s.size))


def bordered(refused: Refused, step: Step, s: Signal, widths: Sequence[int], mode: str) -> Signal:
    """A border of zeros, or of the image's own pixels."""
    if s.channels_last or s.flat or len(widths) > 2 * len(s.size):
        raise refused(step, "padding of what has no positions,")
    places, size = settings.border(s.size, widths, mode)
    return moved(s, places, size)
