"""How much measuring may cost: a share of the training's own work, counted in passes of samples, never in time."""

from __future__ import annotations

from dataclasses import dataclass

START_STEPS = 20  # steps' worth of passes that the start may take
SETTLED = 400  # steps after which the usual share of 5 percent has caught up with that
# of the start: probes of every measurement, the measurement at the end, and dear probes
CHEAP, END, DEAR = 0.25, 0.05, 0.7
CHEAP_LATER, DEAR_LATER = 0.8, 0.2  # of what comes after the start


@dataclass
class Budget:
    """Passes made by training and by measuring, and what measuring may still take.

    All of it together stays within ``share`` of the training's passes, from the step on at which that share is what
    the start may take: ``START_STEPS`` steps' worth, less with shares below 5 percent.

    Args:
        share: of the training's passes; None for any number.

    Attributes:
        training: passes that the training made: samples it stepped over.
        steps: it made.
        cheap: passes of probes that run at every measurement.
        dear: of those that do not.
        asked: of measurements that the user asked for, which take from no other.
    """

    share: float | None
    training: float = 0.0
    steps: int = 0
    cheap: float = 0.0
    dear: float = 0.0
    asked: float = 0.0

    def train(self, samples: int, steps: int) -> None:
        """Count steps of so many samples each."""
        self.training += samples * steps
        self.steps += steps

    @property
    def work(self) -> float:
        """All passes of measuring."""
        return self.cheap + self.dear + self.asked

    @property
    def settled(self) -> int:
        """The step from which on there is more than the start's part."""
        return SETTLED if self.share is None else round(self._start_steps / self.share)

    @property
    def _start_steps(self) -> float:
        return START_STEPS if self.share is None else min(START_STEPS, SETTLED * self.share)

    def _parts(self) -> tuple[float, float]:
        """Passes for the start, and those that came later."""
        assert self.share is not None
        start = self._start_steps * self.training / max(1, self.steps)
        return start, max(0.0, self.share * self.training - start)

    def left(self) -> float:
        """Passes for anything."""
        start, later = self._parts()
        return start + later - self.cheap - self.dear

    def cheap_left(self, *, end: bool = False) -> float:
        """Passes for a measurement, at the end with what was kept for it."""
        start, later = self._parts()
        return (CHEAP + END * end) * start + CHEAP_LATER * later - self.cheap

    def dear_left(self) -> float:
        """Passes for dear probes."""
        start, later = self._parts()
        return min(DEAR * start + DEAR_LATER * later - self.dear, self.left())
