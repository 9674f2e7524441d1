"""``Step``: what a step of a second-order optimizer found and did."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pullback._results import Shown


@dataclass(frozen=True)
class Step(Shown):
    """One step. The model it is judged by is q(p) = loss + g^T p + 1/2 p^T C p, without damping.

    Attributes:
        loss: of the batch before the step.
        new_loss: after it; None where the method does not look.
        predicted_decrease: loss - q(p) of the step p taken (0 where none was).
        damping: added to the diagonal of C for this step; the largest of the groups'.
        smallest_eigenvalue: of C, where it was computed.
        residual: |g - (C + damping) x| / |g| of the direction x, recomputed.
        iterations: of conjugate gradients; 0 where a matrix was factorised.
        converged: whether the direction solves its system to the tolerance.
        tries: directions made until one was taken.
        action: what was done, in words: "step", "damped: …", "rejected: …".
    """

    loss: float
    new_loss: float | None
    predicted_decrease: float
    damping: float
    smallest_eigenvalue: float | None
    residual: float
    iterations: int
    converged: bool
    tries: int
    action: str

    @property
    def ratio(self) -> float:
        """Actual over predicted decrease; NaN where one is unknown or nothing was predicted."""
        if self.new_loss is None or not self.predicted_decrease:
            return math.nan
        return (self.loss - self.new_loss) / self.predicted_decrease

    def state_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and words."""
        return asdict(self)
