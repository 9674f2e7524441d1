"""``response``: how trained weights answer to a change of the training data, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback._results import Shown, Solution
from pullback.functional import LossFunction, check_batch
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.functional.repeatable import values_of
from pullback.functional.unwrap import unwrap
from pullback.influence.mixed import MixedDerivative
from pullback.influence.solves import Matrix, Method
from pullback.influence.system import DampedSystem, settings_of
from pullback.kernels import GradientMatrix
from pullback.operators import Jacobian, as_operator
from pullback.operators.operator import Operator

Wrt = Literal["targets", "inputs", "weights", "labels", "decay"]
WRT = ("targets", "inputs", "weights", "labels", "decay")


@dataclass(frozen=True)
class Response(Shown):
    """Change of the weights per unit of a perturbation, and of what the model then says, to first order.

    Attributes:
        change: dw*/dtheta r, (P,), in the model's parameter order.
        parameters: the same by parameter name.
        solution: residual, iterations, history and whether the solve converged.
    """

    change: Tensor
    parameters: dict[str, Tensor]
    solution: Solution
    _model: nn.Module = field(repr=False)
    _loss_fn: LossFunction = field(repr=False)
    _state: Any = field(repr=False)

    def outputs(self, x: Batch) -> Tensor:
        """Change of the outputs at query inputs (Q, ...), (Q, C): a Jacobian-vector product."""
        self._check("Response.outputs", x, None)
        J = Jacobian(self._model, x, params=list(self.parameters))
        return (J @ self.change).unflatten(0, (J.num_samples, J.num_outputs))

    def losses(self, x: Batch, y: Batch) -> Tensor:
        """Change of every query sample's own loss, (Q,)."""
        self._check("Response.losses", x, y)
        return GradientMatrix(self._model, self._loss_fn, x, y, params=list(self.parameters)) @ self.change

    def _check(self, where: str, x: Batch, y: Batch | None) -> None:
        """Queries that fit, and the weights the response belongs to."""
        check_batch(where, x, y, ("x_query", "y_query"))
        if values_of(unwrap(self._model)) != self._state:
            remedy = "Ask before training on, or call response again"
            raise input_error(where, "the weights the response was computed at", "others", remedy)


@dataclass(frozen=True)
class Perturbation:
    """What is changed: see ``response``.

    Attributes:
        wrt: of what kind.
        labels: the other targets, for "labels".
        points: of which samples; None for the training data.
    """

    wrt: Wrt
    labels: Batch | Iterable[Batch] | None
    points: Data | None

    @classmethod
    def of(cls, wrt: Wrt, labels: Any, points: Data | None, where: str) -> Perturbation:
        """Checked."""
        check_option(where, "wrt", wrt, WRT)
        return cls(wrt, labels, points)

    def of_samples(self, system: DampedSystem) -> Data:
        """The samples that are changed."""
        return system.data if self.points is None else self.points

    def derivative(self, system: DampedSystem) -> tuple[Operator, tuple[int, ...]]:
        """d^2 J / dw dtheta (P, M) and the shape of theta."""
        view = system.view
        if self.wrt == "decay":
            return as_operator(view.flatten(view.parameters).detach().unsqueeze(1)), ()
        data, names = self.of_samples(system), list(view.parameters)
        mixed = MixedDerivative(
            system.model,
            system.loss_fn,
            data,
            self.wrt,
            labels=self.labels,
            count=system.num_samples,
            params=names,
        )
        return mixed, mixed.theta_shape


@torch.inference_mode(False)
def response(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    direction: Tensor | float | None = None,
    *,
    damping: float,
    wrt: Wrt = "targets",
    labels: Batch | Iterable[Batch] | None = None,
    points: Data | None = None,
    matrix: Matrix = "gauss_newton",
    method: Method = "cg",
    tol: float = 1e-6,
    max_iters: int | None = None,
    params: Iterable[str] | None = None,
) -> Response:
    """Response -(A + damping I)^{-1} d^2 J / dw dtheta r of the weights to a change r of the training data.

    J = 1/N sum_i L_i + damping/2 |w|^2 and A is the curvature of its first part: with the weight decay of the training
    as ``damping`` the answer is the derivative of the regularised minimum (to the extent that A is the Hessian).
    ``damping`` belongs to the averaged cost: where a cost is summed, lam_total = N lam_average.

    Args:
        model: any module in eval mode, trained to a minimum of J. Elsewhere the formula answers for the quadratic
            around the weights (with Gauss-Newton: for the linearised model), not for further training.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample, (N,).
        data: the training data: one pair ``(x, y)``, or an iterable of pairs that can be walked through again.
        direction: r, of the shape of what is perturbed: (N, ...), all batches one after the other; for "weights" and
            "labels" (N,). For "labels" None means one everywhere, for "decay" it is a number.
        damping: lam, at least 0.
        wrt: "targets", "inputs", "weights" (-1 removes a sample), "labels" (replaced by ``labels``), see
            ``MixedDerivative``; "decay": the factor lam of lam/2 |w|^2.
        labels: for "labels": the other targets.
        points: perturbed samples, where they are only some of the training samples, or for "weights" new ones.
        matrix: A: "gauss_newton", "hessian" or "empirical_fisher".
        method: "cg": conjugate gradients; "dual": exact, by factors of the samples' Gram matrix (``DampedInverse``) or
            of A + damping I itself, whichever is smaller; "auto": factors where they take at most 2 GiB and cost less
            than iterations, and the losses are convex in the outputs.
        tol: relative residual to reach; with 0 exactly ``max_iters`` iterations are made.
        max_iters: iterations allowed; None as ``solve`` has it.
        params: names of parameters or modules that answer; None for all trainable ones.

    Returns:
        Response; a solve that has not converged is data, in its ``solution``.

    Raises:
        InputError: a direction of another shape, ``damping=0`` with a singular matrix, a Hessian with negative
            curvature (damp it, or use Gauss-Newton), unfit data.

    Cost: one mixed derivative (a gradient and a backward pass through it), then a product with A for every iteration;
        memory of A's graph and a handful of vectors (P,). Without damping also at most 100 products and 50 vectors,
        which test that A is positive definite. "dual": see ``DampedInverse``.

    References: Grosse (2021), Taylor approximations, eq. 18; Koh and Liang (2017), arXiv:1703.04730.

    Example:
        >>> x = torch.randn(6, 2, dtype=torch.float64)
        >>> model, half = nn.Linear(2, 1, bias=False).double(), lambda z, y: (z - y).square().sum(1) / 2
        >>> A, r = x.T @ x / 6 + 0.1 * torch.eye(2), torch.ones(6, 1, dtype=torch.float64)
        >>> found = response(model, half, (x, model(x).detach()), r, damping=0.1, tol=1e-12)
        >>> bool(torch.allclose(found.change, torch.linalg.solve(A, x.T @ r / 6)[:, 0]))  # the ridge's
        True
    """
    where = "response"
    settings = settings_of(where, matrix, method, damping, tol, max_iters, params)
    change = Perturbation.of(wrt, labels, points, where)
    return respond(DampedSystem(model, loss_fn, data, settings, where), direction, change, where)


def respond(system: DampedSystem, direction: Tensor | float | None, change: Perturbation, where: str) -> Response:
    """The response of a system that is there."""
    mixed, shape = change.derivative(system)
    b = mixed @ _flat(direction, shape, change.wrt, mixed, where)
    solution = system.for_columns(1).solve(-b)
    named = system.view.unflatten(solution.x)
    return Response(solution.x, named, solution, system.model, system.loss_fn, values_of(system.view.model))


def _flat(direction: Any, shape: tuple[int, ...], wrt: str, mixed: Operator, where: str) -> Tensor:
    """The direction as a vector (M,)."""
    if direction is None and wrt == "labels":
        return torch.ones(mixed.shape[1], dtype=mixed.dtype, device=mixed.device)
    if direction is None:
        raise input_error(where, f"a `direction` of shape {tuple(shape)}", "None", "Say which change is meant")
    given = direction if isinstance(direction, Tensor) else torch.as_tensor(direction, dtype=torch.float64)
    if tuple(given.shape) != tuple(shape):
        got = f"{tuple(given.shape)}"
        raise input_error(where, f"a `direction` of shape {tuple(shape)} for wrt={wrt!r}", got, "Reshape it")
    return given.reshape(-1).to(mixed.device, mixed.dtype)
