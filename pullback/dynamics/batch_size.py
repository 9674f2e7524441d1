"""What the batch size does: updates to a target, the size of Adam's step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_positive, input_error
from pullback._results import Shown
from pullback.dynamics.quadratic import Quadratic, noisy_moments
from pullback.dynamics.quadratic.quadratic import check_quadratic
from pullback.dynamics.quadratic.values import values

RATES = 24  # tried of a batch size, if none are given


@dataclass(frozen=True)
class BatchCurve(Shown):
    """Updates that descent needs, by batch size, each at its best rate of those tried.

    Attributes:
        batch_sizes: (B,).
        steps: updates to the target; inf where no rate gets there.
        lr: the best rate.
        least: updates without noise, which no batch size can do without.
        saturation: the smallest of the batch sizes that needs at most twice as many; inf if none does.
    """

    batch_sizes: Tensor
    steps: Tensor
    lr: Tensor
    least: float
    saturation: float

    @property
    def samples(self) -> Tensor:
        """Gradients of single samples it takes, (B,)."""
        return self.steps * self.batch_sizes


def batch_size_curve(
    problem: Quadratic,
    x0: Any,
    target: float,
    batch_sizes: Sequence[int],
    *,
    noise_covariance: Any,
    lrs: Sequence[float] | None = None,
    most: int = 2000,
) -> BatchCurve:
    """First update at which the mean excess loss is below a target, by batch size, in closed form.

    The gradient of a batch of S samples has the covariance C / S, so that the mean excess loss after k updates is that
    without noise plus what noise of covariance C brings, over S. Updates fall with S while noise decides, and cease to
    where curvature does.

    Args:
        problem: of positive curvature.
        x0: start, (d,).
        target: excess loss to reach.
        batch_sizes: S, ascending or not.
        noise_covariance: C, of single samples: one variance for all coordinates, (d,) or (d, d).
        lrs: rates to choose from for every batch size; left out: 24 from a thousandth of the fastest one to it.
        most: updates to look at.

    Returns:
        BatchCurve.

    Raises:
        InputError: a target, a batch size or a rate that is not positive; curvature that is not.

    Cost: two times ``noisy_moments`` a rate.

    References: McCandlish et al. (2018), arXiv:1812.06162; Shallue et al. (2018), arXiv:1811.03600.

    Example:
        >>> problem = Quadratic([1.0, 0.1])
        >>> found = batch_size_curve(problem, [1.0, 1.0], 1e-3, [1, 10, 100, 1000], noise_covariance=0.1)
        >>> found.steps.tolist(), found.saturation
        ([1773.0, 178.0, 26.0, 15.0], 100.0)
    """
    where = "batch_size_curve"
    check_quadratic(where, problem)
    check_positive(where, "target", target)
    sizes = values(batch_sizes, "batch_sizes", where).double()
    if sizes.dim() != 1 or not len(sizes) or not bool(((sizes > 0) & (sizes == sizes.round())).all()):
        got, remedy = repr(batch_sizes), "Pass a list of numbers of samples"
        raise input_error(where, "whole numbers `batch_sizes` above 0", got, remedy)
    fastest = problem.optimal("gradient_descent").lr
    rates = [fastest * 10 ** (-3 + 3 * k / (RATES - 1)) for k in range(RATES)] if lrs is None else list(lrs)
    first, least = [], math.inf
    for lr in rates:
        clean = noisy_moments(problem, x0, most, lr=lr).excess_loss
        extra = noisy_moments(problem, x0, most, lr=lr, noise_covariance=noise_covariance).excess_loss - clean
        first.append(_first_below(clean + extra / sizes[:, None], target))
        least = min(least, float(_first_below(clean, target)))
    steps, place = torch.stack(first).min(0)
    enough = sizes[steps <= 2 * least]
    saturation = float(enough.min()) if len(enough) and least < math.inf else math.inf
    return BatchCurve(sizes, steps, torch.tensor(rates, dtype=torch.float64)[place], least, saturation)


def _first_below(losses: Tensor, target: float) -> Tensor:
    below = losses < target
    return torch.where(below.any(-1), below.to(torch.uint8).argmax(-1).double(), math.inf)


def adam_effective_step(mean: Any, variance: Any, batch_size: Any) -> Tensor:
    """Mean of Adam's step over its rate, |mean| / sqrt(mean^2 + variance / S): larger batches take larger steps.

    Of a coordinate whose gradient has this mean, and over single samples this variance, once both averages have
    settled and vary little themselves. Where noise decides it grows like sqrt(S); where it does not, it is 1.

    Args:
        mean: of the gradient.
        variance: over single samples.
        batch_size: S.

    Returns:
        Of their common shape.

    Raises:
        InputError: a batch size that is not positive, a variance that is negative.

    Example:
        >>> adam_effective_step(0.1, 1.0, [1, 10, 100, 1000])
        tensor([0.0995, 0.3015, 0.7071, 0.9535], dtype=torch.float64)
    """
    where = "adam_effective_step"
    mu, s2, S = (
        values(each, name, where).double()
        for each, name in ((mean, "mean"), (variance, "variance"), (batch_size, "batch_size"))
    )
    if not bool((S > 0).all()):
        raise input_error(where, "`batch_size` above 0", repr(batch_size), "Pass numbers of samples")
    if not bool((s2 >= 0).all()):
        raise input_error(where, "`variance` of at least 0", repr(variance), "Pass a variance")
    size = (mu.square() + s2 / S).sqrt()
    return torch.where(size > 0, mu.abs() / size.where(size > 0, 1.0), 0.0)
