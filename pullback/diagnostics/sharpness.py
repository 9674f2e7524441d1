"""Sharpness against the learning rate, and the four matrices people call curvature, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pullback._checks import check_positive
from pullback._results import Shown
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.kernels import GradientMatrix
from pullback.operators import GaussNewton, Hessian
from pullback.spectral import Eigenpairs, eigenvalues


@dataclass(frozen=True)
class Sharpness(Shown):
    """Largest curvature of the mean loss, against what a learning rate can bear.

    Attributes:
        hessian: largest eigenvalue of the Hessian, with its ``Eigenpairs``.
        gauss_newton: the same of the Gauss-Newton matrix; go by this one for networks with kinks (ReLU): autograd
            takes a kink's own curvature, all of it at one point, for zero, so that their Hessian is only that between
            kinks and may change from one step to the next. The Gauss-Newton matrix needs first derivatives of the
            model alone.
        learning_rate: the one compared with, or None.
        limit: 2 / learning_rate: gradient descent on a quadratic diverges along any eigenvector above it.
        stable: whether both lie below the limit; None without a learning rate.
    """

    hessian: Eigenpairs
    gauss_newton: Eigenpairs
    learning_rate: float | None

    @property
    def limit(self) -> float | None:
        """2 / learning_rate."""
        return None if self.learning_rate is None else 2 / self.learning_rate

    @property
    def stable(self) -> bool | None:
        """Whether both largest eigenvalues lie below the limit."""
        if self.limit is None:
            return None
        return max(float(self.hessian.values[0]), float(self.gauss_newton.values[0])) < self.limit

    def __str__(self) -> str:
        pairs = {"Hessian": self.hessian, "Gauss-Newton": self.gauss_newton}
        lines = [
            f"largest eigenvalue of the {name}: {float(each.values[0]):.6g} (residual {float(each.residuals[0]):.2g}, "
            f"{'converged' if each.converged else 'not converged'})"
            for name, each in pairs.items()
        ]
        if self.limit is not None:
            verdict = "both below" if self.stable else "not both below"
            lines.append(f"{verdict} 2 / learning rate = {self.limit:.6g}")
        lines.append(
            "With kinks (ReLU) go by Gauss-Newton: the Hessian counts a kink's own curvature as zero, as autograd does"
        )
        return "\n".join(lines)


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    lr: float | None = None,
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
) -> Sharpness:
    """Largest eigenvalue of the Hessian and of the Gauss-Newton matrix of the mean loss over ``data``.

    The limit 2 / lr is that of plain gradient descent. Momentum raises it to 2 (1 + momentum) / lr, and Adam's
    applies to the Hessian preconditioned by its second moments (Cohen et al. 2022, arXiv:2207.14484).
    For networks with kinks (ReLU) the Gauss-Newton value is the one to go by, see ``Sharpness``; more of its spectrum
    comes from ``curvature_spectrum``.

    Args:
        model: in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: ``(x, y)``, or an iterable of such pairs.
        lr: learning rate to compare with.
        tol: relative residual at which the iteration stops.
        max_matvecs: products allowed for each matrix.
        seed: of the start vector.

    Raises:
        InputError: a learning rate that is not positive; bad data.

    Cost: ten to forty Hessian-vector products, each two to four gradients, and as many Gauss-Newton products.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> s = sharpness(model, nn.MSELoss(), (x, torch.zeros(2, 1)), lr=0.1)  # Hessian 2 mean x^2 = 10
        >>> round(float(s.hessian.values[0]), 4), s.limit, s.stable
        (10.0, 20.0, True)
    """
    if lr is not None:
        check_positive("sharpness", "lr", lr)
    pairs = [
        eigenvalues(operator(model, loss_fn, data), tol=tol, max_matvecs=max_matvecs, seed=seed)
        for operator in (Hessian, GaussNewton)
    ]
    return Sharpness(pairs[0], pairs[1], lr)


def compare_curvatures(
    model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch, *, k: int = 1
) -> dict[str, Eigenpairs]:
    """Largest eigenvalues of the Hessian, Gauss-Newton, empirical Fisher and backward kernel, all with 1/N.

    The last two agree always (G^T G / N and G G^T / N share their non-zero eigenvalues). They are no stand-in for
    the first two: where a model interpolates its data every gradient is zero, and the Hessian is not (Kunstner,
    Balles and Hennig 2019, arXiv:1905.12558).

    Args:
        model: any module in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample; the mean is taken.
        x: inputs (N, ...).
        y: targets.
        k: eigenvalues of each, the largest first; fewer where a matrix has fewer rows.

    Returns:
        "hessian", "gauss_newton", "empirical_fisher", "backward_kernel" -> Eigenpairs of length k.

    Cost: products with the four operators, as many as ``eigenvalues`` takes; the rows of the samples' gradients.

    Example:
        >>> import torch
        >>> model, x, y = nn.Linear(3, 1).double(), torch.randn(6, 3).double(), torch.randn(6, 1).double()
        >>> found = compare_curvatures(model, nn.MSELoss(), x, y)
        >>> [bool(torch.isclose(found[a].values[0], found[b].values[0])) for a, b in
        ...     (("hessian", "gauss_newton"), ("empirical_fisher", "backward_kernel"))]
        [True, True]
    """
    G = GradientMatrix(model, loss_fn, x, y)
    n, p = G.shape
    fisher, kernel = (1 / n) * (G.T @ G), (1 / n) * (G @ G.T)
    return {
        "hessian": eigenvalues(Hessian(model, loss_fn, (x, y)), min(k, p)),
        "gauss_newton": eigenvalues(GaussNewton(model, loss_fn, (x, y)), min(k, p)),
        "empirical_fisher": eigenvalues(fisher, min(k, p)),
        "backward_kernel": eigenvalues(kernel, min(k, n)),
    }
