"""``ConflictSampler``: samples whose gradients fight the others' are drawn less often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from pullback._checks import check_positive, input_error
from pullback._rng import make_generator
from pullback.diagnostics import alignment
from pullback.kernels import Kernel

MEMORY = 0.8  # weight of the past in a sample's mean conflict


class ConflictSampler(Sampler[int]):
    """A sampler that draws the samples of the most conflicting pairs less often; off until ``strength`` is above 0.

    The conflict c_i of a sample is the mean of max(0, -cosine) of its gradient with the others of a measured batch,
    from 0 to 1, averaged over measurements; 0 for samples never measured. An epoch is N draws with replacement at
    p_i proportional to exp(-strength c_i). Drawn less, a wrong label or a sample of its own kind holds the others back
    less; the mean gradient is then that of another mixture of the data. ``weights`` undoes this, sample by sample.

    With ``strength=0`` an epoch is a plain permutation: every sample once.

    Args:
        num_samples: N of the data set.
        strength: of the preference; at 10 a sample whose conflict is 0.1 above another's is drawn 1 / e times as often.
        seed: of the order, another one every epoch.

    Attributes:
        conflict: c, (N,).

    Raises:
        InputError: no samples, or a negative strength.

    References: conflicting gradients, Yu et al. (2020), arXiv:2001.06782; importance weights, Katharopoulos and Fleuret
        (2018), arXiv:1803.00942.

    Example:
        >>> sampler = ConflictSampler(4, strength=2.0)
        >>> G = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # the third opposes the others
        >>> sampler.update(G @ G.T, [0, 1, 3])
        >>> [round(float(c), 6) for c in sampler.conflict]
        [0.5, 0.5, 0.0, 1.0]
        >>> p = sampler.probabilities()
        >>> [round(float(each / p[2]), 4) for each in p]  # exp(-2 c)
        [0.3679, 0.3679, 1.0, 0.1353]
    """

    def __init__(self, num_samples: int, *, strength: float = 0.0, seed: int = 0) -> None:
        where = "ConflictSampler"
        check_positive(where, "num_samples", num_samples)
        if not strength >= 0:
            raise input_error(where, "`strength` of at least 0", repr(strength), "Pass 0 to draw all samples alike")
        self.num_samples, self.strength, self.seed = num_samples, strength, seed
        self.conflict = torch.zeros(num_samples, dtype=torch.float64)
        self._seen = torch.zeros(num_samples, dtype=torch.bool)
        self._epoch = 0

    def update(self, kernel: Kernel | Tensor, indices: Tensor | Sequence[int]) -> None:
        """Take a measurement in: a kernel of samples with themselves, (n, n), and their places in the data, (n,).

        Raises:
            InputError: not a symmetric kernel; places of another number, outside the data, or twice the same.
        """
        where = "ConflictSampler.update"
        cosine = alignment(kernel).cosine.double().cpu()
        places, n = torch.as_tensor(indices).cpu(), len(cosine)
        if places.shape != (n,) or n < 2 or len(places.unique()) < n:
            got = f"{len(places.unique())} of them for {n} samples"
            raise input_error(
                where, "`indices` with a place of its own for each of two samples or more", got, "Pass one"
            )
        if int(places.min()) < 0 or int(places.max()) >= self.num_samples:
            got = f"{int(places.min())} to {int(places.max())}"
            raise input_error(where, f"`indices` from 0 to {self.num_samples - 1}", got, "Pass places in the data set")
        against = (-cosine).clamp(min=0)
        found = (against.sum(1) - against.diagonal()) / (n - 1)
        old = torch.where(self._seen[places], self.conflict[places], found)
        self.conflict[places] = MEMORY * old + (1 - MEMORY) * found
        self._seen[places] = True

    def probabilities(self) -> Tensor:
        """Of every sample at each draw, (N,)."""
        return torch.softmax(-self.strength * self.conflict, 0)

    def weights(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Importance weights 1 / (N p_i), (n,): with them the mean loss over a batch drawn here is unbiased."""
        return 1 / (self.num_samples * self.probabilities()[torch.as_tensor(indices).cpu()])

    def __iter__(self) -> Iterator[int]:
        """One epoch; probabilities are those at its beginning."""
        generator = make_generator(self.seed + self._epoch)
        self._epoch += 1
        if self.strength == 0:
            yield from torch.randperm(self.num_samples, generator=generator).tolist()
        else:
            ends = self.probabilities().cumsum(0)
            drawn = torch.rand(self.num_samples, generator=generator, dtype=torch.float64) * ends[-1]
            yield from torch.searchsorted(ends, drawn, right=True).clamp(max=self.num_samples - 1).tolist()

    def __len__(self) -> int:
        """Draws of an epoch, N."""
        return self.num_samples

    def state_dict(self) -> dict[str, Any]:
        """What a later ``load_state_dict`` needs to go on from the next epoch."""
        return {"epoch": self._epoch, "conflict": self.conflict.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was called.

        Raises:
            InputError: a state of another number of samples.
        """
        if len(state["conflict"]) != self.num_samples:
            got = str(len(state["conflict"]))
            where, expected = "ConflictSampler.load_state_dict", f"a state of {self.num_samples} samples"
            raise input_error(where, expected, got, "Make the sampler with that number")
        self._epoch = state["epoch"]
        self.conflict, self._seen = state["conflict"].clone(), state["seen"].clone()
