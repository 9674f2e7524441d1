"""What a probe costs, in forward-and-backward passes of single samples: known before it runs, whatever the machine."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 0.5  # of a pass, at most: the part of it that a forward pass is, of a single layer
KERNEL_FIRST = 8.0  # passes of the first kernel of a run beside one a sample: rows compared with single samples'


@dataclass(frozen=True)
class Work:
    """Passes that a probe makes itself, beside those of the kernel that all share.

    Args:
        sample: passes of every sample.
        fixed: passes however many samples there are.
        most: samples it looks at, at most; None for all.
    """

    sample: float = 0.0
    fixed: float = 0.0
    most: int | None = None

    def of(self, samples: int) -> float:
        """Passes with so many samples."""
        return self.fixed + self.sample * self.taken(samples)

    def taken(self, samples: int) -> int:
        """Samples it looks at out of so many."""
        return samples if self.most is None else min(samples, self.most)

    @property
    def is_free(self) -> bool:
        """Whether it makes no pass of its own."""
        return not self.sample and not self.fixed

    def affordable(self, passes: float, samples: int) -> int:
        """The most samples, of so many, that cost no more than so many passes."""
        most = self.taken(samples)
        if not self.sample:
            return most if self.fixed <= passes else 0
        return max(0, int(min(most, (passes - self.fixed) / self.sample)))


FREE = Work()
