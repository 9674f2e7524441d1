"""``NoiseScaleBatch``: batches as large as the gradient's noise asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from pullback._checks import check_positive, input_error
from pullback._rng import make_generator
from pullback.diagnostics import gradient_noise
from pullback.kernels import Kernel

MEMORY = 0.8  # weight of the past in the means of signal and noise
LARGEST_STEP = 2.0  # factor by which the size changes an update


class NoiseScaleBatch(Sampler[list[int]]):
    """A batch sampler whose batch size follows the gradient noise scale tr(Sigma) / |G|^2.

    At the noise scale both the steps and the samples to a given loss are twice the least possible; smaller batches save
    samples, larger ones steps. Signal and noise are averaged over updates before they are divided, since the estimate
    of |G|^2 alone scatters around 0 late in training; where its mean is not above 0 the size grows. An update changes
    the size by a factor of two at most. The learning rate is left alone: with the size it should grow, for gradient
    descent in proportion up to its limit.

    Pass it as ``batch_sampler`` of a ``DataLoader`` without workers (they draw batches ahead), and call ``update`` with
    a kernel of any samples, now and then.

    Args:
        num_samples: N of the data set.
        batch_size: to begin with.
        smallest: batch size never gone below.
        largest: batch size never gone above; None means N.
        share: of the noise scale that is aimed at.
        seed: of the order, another one every epoch.

    Attributes:
        batch_size: of the next batch.

    Raises:
        InputError: sizes that are not in order, from 1 to N.

    References: McCandlish et al. (2018), arXiv:1812.06162, equations 2.9 and 2.11, and appendix A for the averages.

    Example:
        >>> sampler = NoiseScaleBatch(100, 4)
        >>> G = torch.tensor([[1.0, 3.0], [1.0, -3.0], [1.0, 0.0]])  # |G|^2 = -2, unbiased: all noise
        >>> sampler.update(G @ G.T)
        >>> [len(batch) for batch in sampler]
        [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 4]
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        smallest: int = 1,
        largest: int | None = None,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        where = "NoiseScaleBatch"
        check_positive(where, "share", share)
        largest = num_samples if largest is None else largest
        if not 1 <= smallest <= batch_size <= largest <= num_samples:
            sizes = f"{smallest}, {batch_size}, {largest}, {num_samples}"
            expected = "1 <= smallest <= batch_size <= largest <= num_samples"
            raise input_error(where, expected, sizes, "Pass sizes in this order")
        self.num_samples, self.batch_size = num_samples, batch_size
        self.smallest, self.largest, self.share, self.seed = smallest, largest, share, seed
        self._epoch = 0
        self._means: tuple[float, float] | None = None  # of |G|^2 and tr(Sigma)

    def update(self, kernel: Kernel | Tensor) -> None:
        """Take a measurement in: a kernel of single samples' gradients with themselves, (N, N), three or more.

        Raises:
            InputError: as ``gradient_noise``.
        """
        found = gradient_noise(kernel)
        new = found.square_mean, found.variance
        old = new if self._means is None else self._means
        signal, noise = (MEMORY * a + (1 - MEMORY) * b for a, b in zip(old, new, strict=True))
        self._means = signal, noise
        wanted = self.share * noise / signal if signal > 0 else float(self.largest)
        bounded = min(max(wanted, self.batch_size / LARGEST_STEP), self.batch_size * LARGEST_STEP)
        self.batch_size = min(max(round(bounded), self.smallest), self.largest)

    def __iter__(self) -> Iterator[list[int]]:
        """One epoch: every sample once, in batches of the size that holds when each is drawn."""
        order = torch.randperm(self.num_samples, generator=make_generator(self.seed + self._epoch)).tolist()
        self._epoch += 1
        start = 0
        while start < len(order):
            batch = order[start : start + self.batch_size]
            start += len(batch)  # before the size may change
            yield batch

    def __len__(self) -> int:
        """Batches of an epoch, if the size stays."""
        return -(-self.num_samples // self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What a later ``load_state_dict`` needs to go on from the next epoch."""
        return {"batch_size": self.batch_size, "epoch": self._epoch, "means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called."""
        self.batch_size, self._epoch, self._means = state["batch_size"], state["epoch"], state["means"]
