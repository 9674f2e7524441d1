"""``ensemble_dynamics``: the distribution of the outputs of infinitely wide networks while they train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown
from pullback.dynamics.linear.kernel_matrices import (
    as_matrix,
    cross_kernel,
    layout_of,
    modes_of,
    square_kernel,
    values_of,
)
from pullback.dynamics.linear.responses import responses, schedule_of


@dataclass(frozen=True)
class Ensemble(Shown):
    """Gaussian distribution of outputs over the weights a network starts from.

    Attributes:
        mean: on the test samples, (M, ...) like the targets; (T, M, ...) for T times.
        covariance: between test samples, of every output alike, (M, M); (T, M, M) for T times.
        times: of gradient flow, or numbers of steps.
        max_lr: the largest stable rate of gradient descent.
    """

    mean: Tensor
    covariance: Tensor
    times: tuple[float, ...]
    max_lr: float

    @property
    def stddev(self) -> Tensor:
        """Standard deviations, (M,) or (T, M)."""
        return torch.diagonal(self.covariance, dim1=-2, dim2=-1).clamp(min=0).sqrt()


def ensemble_dynamics(
    kernels: tuple[Any, Any],
    targets: Any,
    *,
    cross: tuple[Any, Any],
    test: Any,
    lr: float | None = None,
    time: Any = float("inf"),
    momentum: float = 0.0,
) -> Ensemble:
    """Mean and covariance of outputs over infinitely wide networks trained by squared loss, from NNGP and NTK kernels.

    Outputs at the start are Gaussian with covariance K (NNGP). Training is linear in them, with A = Theta* s(Theta, t)
    and s as in ``linear_dynamics``:

        mean          A y
        covariance    K** - A K*^T - K* A^T + A K A^T

    At time=inf with ``ntk`` this is what an ensemble of trained networks predicts, which is no posterior. With the
    NNGP kernel in place of the NTK it is the Bayesian posterior, and what training the last layer alone gives.

    Args:
        kernels: (nngp, ntk) between training samples, (N, N) each, as ``theory`` returns them.
        targets: (N,) or (N, ...), outputs independent.
        cross: (nngp, ntk) between test and training samples, (M, N) each.
        test: nngp between test samples, (M, M), or (nngp, ntk), of which the first is used.
        lr: as of ``linear_dynamics``.
        time: as of ``linear_dynamics``.
        momentum: as of ``linear_dynamics``.

    Returns:
        Ensemble, in float64.

    Raises:
        InputError: as ``linear_dynamics``; kernels that are no pairs.

    Cost: an eigendecomposition, N^3, and N^2 M + N M^2 a time.

    References: Lee et al. (2019), arXiv:1902.06720, equations 13 to 16.

    Example:
        >>> one = torch.ones(1, 1)  # two inputs that are the same
        >>> found = ensemble_dynamics((one, one), torch.tensor([3.0]), cross=(one, one), test=one, time=[0, 1e9])
        >>> found.mean.flatten().tolist(), found.covariance.flatten().tolist()
        ([0.0, 3.0], [1.0, 0.0])
    """
    where = "ensemble_dynamics"
    schedule = schedule_of(time, lr, momentum, where)
    (nngp, ntk), (cross_nngp, cross_ntk) = (
        _pair(each, n, where) for each, n in ((kernels, "kernels"), (cross, "cross"))
    )
    theta = square_kernel(ntk, "ntk", where)
    prior = square_kernel(nngp, "nngp", where)
    between, across = (
        cross_kernel(cross_ntk, theta, "cross ntk", where),
        cross_kernel(cross_nngp, prior, "cross nngp", where),
    )
    own = square_kernel(test[0] if isinstance(test, tuple | list) else test, "test", where)
    for name, covariance, shape in (
        ("nngp", prior, theta.shape), ("cross nngp", across, between.shape), ("test", own, (len(between),) * 2),
    ):  # fmt: skip
        if tuple(covariance.shape) != tuple(shape) or covariance.dim() != 2:
            raise input_error(
                where, f"`{name}` {tuple(shape)}", f"{tuple(covariance.shape)}", "Pass kernels of one output"
            )
    y = values_of(targets, "targets", where).to(theta.device)
    layout = layout_of(theta, y.shape, "targets", where)
    modes = modes_of(theta, "ntk", where)
    modes_of(prior, "nngp", where)  # refuses what is no covariance
    modes_of(own, "test", where)
    K, cross_K, test_K = as_matrix(prior), as_matrix(across), as_matrix(own)
    means, covariances = [], []
    for s in responses(modes, layout.count, schedule, where):
        A = as_matrix(between) @ ((modes.vectors * s) @ modes.vectors.T)
        means.append(layout.values(A @ layout.columns(y)))
        mixed = A @ cross_K.T
        covariance = test_K - mixed - mixed.T + A @ K @ A.T
        covariances.append((covariance + covariance.T) / 2)
    limit = schedule.stable_rate(modes.largest / layout.count)
    return Ensemble(schedule.shown(means), schedule.shown(covariances), schedule.times, limit)


def _pair(kernels: Any, name: str, where: str) -> tuple[Any, Any]:
    if not isinstance(kernels, tuple | list) or len(kernels) != 2:
        raise input_error(where, f"`{name}` as (nngp, ntk)", type(kernels).__name__, "Pass both kernels")
    return kernels[0], kernels[1]
