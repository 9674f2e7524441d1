"""Powers of the width: slopes of logarithms over several draws, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback._results import Shown

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Slope(Shown):
    """Least-squares slope of log y against log m.

    Attributes:
        value: mean of the slopes of single draws.
        low: lower end of the 95 percent confidence interval, by Student's distribution; nan where nothing is left to
            tell it from (one draw at two widths), as for ``high``.
        high: its upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, widths: Tensor, values: Tensor) -> Slope:
        """Of values (W, S) at W widths, S draws of all of them; errors are those over draws, or of one line's points.

        Example:
            >>> m = torch.tensor([10.0, 100.0, 1000.0])
            >>> print(Slope.of(m, torch.stack([m**-0.5, 2 * m**-0.5], 1)))
            -0.500 [-0.500, -0.500]
        """
        x, y = widths.double().log(), values.double().log()  # (W,), (W, S)
        centred = x - x.mean()
        weight = centred / centred.square().sum()
        slopes = weight @ y  # (S,)
        count = len(slopes)
        if count > 1:
            freedom, error = count - 1, float(slopes.std() / count**0.5)
        else:
            left = (y - y.mean(0) - torch.outer(centred, slopes)).squeeze(1)
            freedom = len(x) - 2
            error = math.nan if freedom < 1 else float((left.square().sum() / freedom).sqrt() * weight.norm())
        half = error * _quantile(freedom) if freedom > 0 else math.nan
        value = float(slopes.mean())
        return cls(value, value - half, value + half)


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
