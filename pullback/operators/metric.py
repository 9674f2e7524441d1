"""``pullback_metric``: a metric on the outputs, seen from the parameters or the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional.batch import Batch
from pullback.operators.jacobian import Jacobian
from pullback.operators.operator import Operator

Metric = Tensor | Callable[[Tensor], Tensor]


def pullback_metric(
    model: nn.Module, x: Batch, metric: Metric, wrt: str = "params", *, params: Iterable[str] | None = None
) -> PullbackMetric:
    """Pullback of an output metric, the mean over samples: (1/N) sum over i of J_i^T M_i J_i, as an operator.

    v^T A v is the mean over samples of the squared length, measured by M, of the change of the outputs along v. With
    M the identity it is the classical Gauss-Newton matrix; with the loss's output Hessian ``pb.GaussNewton``; with
    the output distribution's Fisher matrix ``pb.Fisher``. With ``wrt="input"`` the blocks are those of the samples.

    Args:
        model: as for ``Jacobian``.
        x: as for ``Jacobian``.
        metric: M, symmetric and positive semi-definite: (C, C) for all samples, (N, C, C), or a function from the
            outputs (N, ...) to either, evaluated again when the weights have changed. Outputs are flattened to C.
        wrt: "params", (P, P), or "input", (N D, N D).
        params: as for ``Jacobian``.

    Raises:
        InputError: as ``Jacobian``; a metric of another shape, not symmetric, or with a negative eigenvalue.
        UnsupportedError: as ``Jacobian``.

    Cost: per column a product with J, one with M (N C^2) and one with J^T; N eigenvalue problems of size C, once.

    References: Grosse (2021), Neural net training dynamics, chapter 2 and 3.

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double(), torch.ones(4, 3, dtype=torch.float64)
        >>> A = pullback_metric(model, x, torch.eye(2, dtype=torch.float64))
        >>> J = reference.output_gradients(model, x).flatten(0, 1)
        >>> bool(torch.allclose(A.to_dense(), J.T @ J / 4))
        True
    """
    return PullbackMetric(Jacobian(model, x, wrt, params=params), metric)


class PullbackMetric(Operator):
    """(1/N) J^T M J.

    Attributes:
        jacobian: J.
    """

    symmetric = True

    def __init__(self, jacobian: Jacobian, metric: Metric) -> None:
        super().__init__((jacobian.shape[1], jacobian.shape[1]), jacobian.dtype, jacobian.device)
        self.jacobian, self._given = jacobian, metric
        self._seen: tuple[Tensor, Tensor] | None = None
        self.metric()

    def metric(self) -> Tensor:
        """M at the present weights, (C, C) or (N, C, C)."""
        outputs = self.jacobian.outputs() if callable(self._given) else None
        if self._seen is None or (outputs is not None and not torch.equal(outputs, self._seen[0])):
            metric = self._given if isinstance(self._given, Tensor) else self._given(outputs)  # type: ignore[arg-type]
            checked = self._checked(metric)
            self._seen = (checked if outputs is None else outputs), checked
        return self._seen[1]

    def _matmat(self, matrix: Tensor) -> Tensor:
        J = self.jacobian
        change = (J @ matrix).unflatten(0, (J.num_samples, J.num_outputs))
        return J.T @ (self.metric() @ change).flatten(0, 1) / J.num_samples

    def _checked(self, product: Tensor) -> Tensor:
        """Refuse what is no metric; the tolerance for negative eigenvalues is that of rounding."""
        where, count, size = "pullback_metric", self.jacobian.num_samples, self.jacobian.num_outputs
        if not isinstance(product, Tensor) or product.shape not in ((size, size), (count, size, size)):
            got = f"shape {tuple(product.shape)}" if isinstance(product, Tensor) else type(product).__name__
            expected = f"`metric` ({size}, {size}) or ({count}, {size}, {size})"
            raise input_error(where, expected, got, "Flatten the outputs of a sample to C")
        product = product.detach()
        if (product.dtype, product.device) != (self.dtype, self.device):
            got, expected = f"{product.dtype} on {product.device}", f"`metric` in {self.dtype} on {self.device}"
            raise input_error(where, expected, got, "Convert the metric")
        wide = product.double()
        scale, rounding = float(wide.abs().max()), torch.finfo(product.dtype).eps * 100 * size
        if not scale < float("inf") or float((wide - wide.mT).abs().max()) > rounding * scale:
            got = "one that differs from its transpose" if scale < float("inf") else "nan or inf"
            raise input_error(where, "a symmetric `metric`", got, "Pass (M + M.mT) / 2")
        smallest = float(torch.linalg.eigvalsh(wide).min())
        if smallest < -rounding * scale:
            got = f"an eigenvalue {smallest:.3g}"
            raise input_error(where, "a positive semi-definite `metric`", got, "Use J.T @ M @ J for other matrices")
        return product
