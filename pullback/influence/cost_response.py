"""How the minimum of any cost(w, theta) answers to a change of theta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import check_names, input_error
from pullback._results import Shown, Solution
from pullback.functional.differentiable import differentiable
from pullback.operators.operator import Operator
from pullback.spectral import solve

Tree = Tensor | Mapping[str, Any]  # one tensor, or named tensors; plain numbers stand for tensors without axes
Cost = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class CostResponse(Shown):
    """Change of the minimiser of a cost per unit of a direction in its hyper-parameters.

    Attributes:
        change: dw*/dtheta r, as ``w`` was given: a tensor or a dict of tensors.
        solution: how it was solved for: residual, iterations, converged, history.
    """

    change: Any
    solution: Solution


def mixed_second_vp(cost: Cost, w: Tree, theta: Tree, v: Tree, *, transpose: bool = False) -> Any:
    """Product of d^2 cost / dw dtheta with a direction in theta; as a tree shaped like w.

    Args:
        cost: ``cost(w, theta)``, a scalar; normalised as the user has it.
        w: where the derivative is taken: a tensor, or a dict of tensors.
        theta: hyper-parameters: a tensor, or a dict of tensors and numbers.
        v: a direction: shaped like ``theta``; of a dict, the names left out stay as they are. With ``transpose``
            shaped like ``w``.
        transpose: the product of the transposed matrix with ``v``, shaped like ``theta``.

    Raises:
        InputError: a cost that is no scalar, unknown names, a direction of another shape.

    Cost: one gradient of the cost with its graph, and one backward pass through that.

    References: Grosse (2021), Taylor approximations, section 5.1, ``mixed_second_mvp``.

    Example:
        >>> from pullback import reference
        >>> cost = lambda w, theta: (theta * w**3).sum() + (w @ theta) ** 2
        >>> w, theta, v = (torch.arange(3.0) + k for k in range(3))
        >>> dense = reference.dense_mixed_derivative(cost, w, theta)
        >>> bool(torch.allclose(mixed_second_vp(cost, w, theta, v), dense @ v))
        True
    """
    where = "mixed_second_vp"
    at_w, at_theta = _leaves(w, None), _leaves(theta, w)
    first, second = (at_theta, at_w) if not transpose else (at_w, at_theta)
    given = _direction(v, theta if not transpose else w, first, where)
    with differentiable(), torch.enable_grad():
        value = _value(cost, w, theta, at_w, at_theta, where)
        slopes = _gradients(value, list(first.values()), create_graph=True)
        along = sum((s * given[name]).sum() for name, s in zip(first, slopes, strict=True) if name in given)
        derivatives = _gradients(along, list(second.values()))
    return _like(w if not transpose else theta, dict(zip(second, derivatives, strict=True)))


def cost_response(
    cost: Cost,
    w: Tree,
    theta: Tree,
    direction: Tree,
    *,
    matrix: Any = None,
    damping: float = 0.0,
    tol: float = 1e-6,
    max_iters: int | None = None,
) -> CostResponse:
    """Response -(A + damping I)^{-1} d^2 cost / dw dtheta r of the minimiser w of a cost to a direction r in theta.

    Args:
        cost: ``cost(w, theta)``, a scalar, twice differentiable.
        w: a minimum of the cost at ``theta``: a tensor, or a dict of tensors. Elsewhere the formula answers for the
            quadratic around w, not for the cost.
        theta: hyper-parameters: a tensor, or a dict of tensors and numbers.
        direction: r, shaped like ``theta``; of a dict, the names left out stay as they are.
        matrix: A; None takes the Hessian of the cost in w. Otherwise any symmetric operator with ``@``, (P, P), the
            leaves of w one after the other, for example a ``GaussNewton`` plus what the cost adds to it.
        damping: added to A, in the units of this cost: for a mean over samples 1/N of what a sum needs.
        tol: as for ``solve``.
        max_iters: as for ``solve``; with ``tol=0`` the number of iterations made.

    Returns:
        CostResponse.

    Raises:
        InputError: as ``mixed_second_vp`` and ``solve``; a Hessian with negative curvature.

    Cost: a gradient with its graph, then one backward pass through it for every iteration.

    References: Grosse (2021), Taylor approximations, eq. 18.

    Example:
        >>> cost = lambda w, decay: (w - 1).square().sum() / 2 + decay * w.square().sum() / 2
        >>> w = torch.full((2,), 1 / 1.5, dtype=torch.float64)  # 1 / (1 + decay)
        >>> found = cost_response(cost, w, torch.tensor(0.5), torch.tensor(1.0)).change
        >>> bool(torch.allclose(found, torch.full_like(w, -1 / 1.5**2)))
        True
    """
    mixed = mixed_second_vp(cost, w, theta, direction)
    b = -torch.cat([leaf.detach().reshape(-1) for leaf in _leaves(mixed, None).values()])
    operator = _CostHessian(cost, w, theta) if matrix is None else matrix
    solution = solve(operator, b, damping=damping, tol=tol, max_iters=max_iters)
    leaves = _leaves(w, None)
    pieces = solution.x.split([leaf.numel() for leaf in leaves.values()])
    named = {name: piece.view(leaf.shape) for (name, leaf), piece in zip(leaves.items(), pieces, strict=True)}
    return CostResponse(_like(w, named), solution)


class _CostHessian(Operator):
    """d^2 cost / dw^2 (P, P); the gradient's graph is made once."""

    symmetric = True

    def __init__(self, cost: Cost, w: Tree, theta: Tree) -> None:
        at_w = _leaves(w, None)
        self._parameters = list(at_w.values())
        with differentiable(), torch.enable_grad():
            value = _value(cost, w, theta, at_w, _leaves(theta, w), "cost_response")
            slopes = _gradients(value, self._parameters, create_graph=True)
            self._slope = torch.cat([s.reshape(-1) for s in slopes])
        P = self._slope.numel()
        super().__init__((P, P), self._slope.dtype, self._slope.device)

    def _matmat(self, matrix: Tensor) -> Tensor:
        with differentiable():
            columns = [_gradients((self._slope * v).sum(), self._parameters) for v in matrix.T]
        return torch.stack([torch.cat([c.reshape(-1) for c in column]) for column in columns], 1)


def _leaves(tree: Tree, like: Tree | None) -> dict[str, Tensor]:
    """The tensors of a tree by name, cut off from other graphs; numbers take dtype and device of ``like``."""
    named = tree if isinstance(tree, Mapping) else {"": tree}
    first = None if like is None else next(iter(_leaves(like, None).values()))
    leaves = {}
    for name, leaf in named.items():
        tensor = leaf.detach() if isinstance(leaf, Tensor) else torch.as_tensor(leaf, dtype=torch.float64)
        if first is not None and not isinstance(leaf, Tensor):
            tensor = tensor.to(first)
        leaves[name] = tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
    return leaves


def _like(tree: Tree, named: dict[str, Tensor]) -> Any:
    return named if isinstance(tree, Mapping) else named[""]


def _value(
    cost: Cost, w: Tree, theta: Tree, at_w: dict[str, Tensor], at_theta: dict[str, Tensor], where: str
) -> Tensor:
    value = cost(_like(w, at_w), _like(theta, at_theta))
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise input_error(where, "a scalar from `cost(w, theta)`", got, "Sum or average it in the cost")
    return value


def _direction(v: Tree, tree: Tree, leaves: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The direction by name, checked against what it changes."""
    if isinstance(v, Mapping) != isinstance(tree, Mapping):
        got = type(v).__name__
        raise input_error(where, "a direction of the kind of what it changes", got, "Pass a dict for a dict")
    given = v if isinstance(v, Mapping) else {"": v}
    check_names(where, "names", given, list(leaves))
    direction = {}
    for name, value in given.items():
        leaf = leaves[name]
        if not leaf.is_floating_point():
            raise input_error(where, f"real numbers in `{name}`", f"{leaf.dtype}", "Only real numbers can be perturbed")
        tensor = torch.as_tensor(value, dtype=leaf.dtype, device=leaf.device)
        if tensor.shape != leaf.shape:
            what = f"a direction of shape {tuple(leaf.shape)}" + (f" for `{name}`" if name else "")
            raise input_error(where, what, f"{tuple(tensor.shape)}", "Reshape it")
        direction[name] = tensor
    return direction


def _gradients(value: Any, inputs: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Gradients of a scalar in tensors, zero where it does not depend on them."""
    moving = [i for i in inputs if i.requires_grad]
    if not isinstance(value, Tensor) or not value.requires_grad or not moving:
        return [torch.zeros_like(i) for i in inputs]
    gradients = torch.autograd.grad(
        value, moving, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    each = iter(gradients)
    return [next(each) if i.requires_grad else torch.zeros_like(i) for i in inputs]
