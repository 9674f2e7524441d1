"""Whether a loss leaps, told from its own course, whatever constant is added to it."""

from __future__ import annotations

import math
from typing import Any

from pullback._checks import input_error

MEMORY = 0.9  # weight of the past in the running means
FIRST = 5  # changes of the loss before they say how it scatters
CHANGES = 6.0  # mean changes from step to step that noise may make: nearly seven standard deviations
ROUNDING = 1e-6  # of a loss in float32: no leap


class LossCourse:
    """Running means of a loss and of its changes from step to step.

    A loss leaps where it is ``spike`` times as far above its smallest value as the running mean is, and further above
    that mean than noise brings it; or where the mean has risen to ``spike`` times its least height (what grows slowly
    is never far above a mean that follows it). Where the smallest value is not known, or turned out to be wrong, it is
    taken to lie six mean changes below the mean.

    Args:
        least: the smallest value the loss can have; None where it is not known.
        spike: as above.
    """

    def __init__(self, least: float | None, spike: float) -> None:
        self._least, self._spike = least, spike
        self._mean: float | None = None
        self._last = 0.0
        self._change, self._count = 0.0, 0  # running mean of |loss - last loss|, and of how many
        self._lowest, self._floor = (
            math.inf,
            -math.inf,
        )  # the least running mean, and the smallest loss as guessed there

    def leaps(self, loss: float) -> bool:
        """Take in the loss of a step.

        Raises:
            InputError: it is not finite.
        """
        if not math.isfinite(loss):
            raise input_error("CurvatureLR.step", "a finite loss", repr(loss), "Go back to earlier weights")
        if self._mean is None:
            self._mean = self._last = loss
            return False
        sudden, mean = self._sudden(loss, self._mean), self._mean
        self._count += 1
        self._change += max(1 - MEMORY, 1 / self._count) * (abs(loss - self._last) - self._change)
        self._last, self._mean = loss, MEMORY * mean + (1 - MEMORY) * loss
        risen = self._risen(self._mean)
        if risen or sudden:
            self._lowest = math.inf  # begins anew
        return sudden or risen

    def _sudden(self, loss: float, mean: float) -> bool:
        least, known = self._guess(mean)
        if self._count < FIRST and not known:
            return False
        noise = CHANGES * self._change if self._count >= FIRST else 0.0
        return loss - mean > noise and loss - least > self._spike * (mean - least) + ROUNDING * abs(mean)

    def _risen(self, mean: float) -> bool:
        if self._count < FIRST:
            return False
        if mean < self._lowest:
            self._lowest, self._floor = mean, self._guess(mean)[0]
        return mean - self._floor > self._spike * (self._lowest - self._floor) + ROUNDING * abs(mean)

    def _guess(self, mean: float) -> tuple[float, bool]:
        """The smallest loss, and whether it is known."""
        if self._least is not None and self._least <= mean:
            return self._least, True
        return mean - CHANGES * self._change, False

    def state_dict(self) -> dict[str, Any]:
        """All that later answers depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("_least", "_spike")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        vars(self).update(state)
