"""Functions to move on: quadratics, valleys, saddles, plateaus, wells, test functions, and a small network's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import InputError, check_option, input_error, unsupported
from pullback._results import Shown
from pullback.dynamics.quadratic import Quadratic
from pullback.dynamics.quadratic.values import values
from pullback.functional import LossFunction, check_batch, per_sample_loss
from pullback.functional.batch import Batch, copied
from pullback.functional.losses import unchecked_loss
from pullback.functional.model_view import ModelView, evaluate
from pullback.functional.modes import mode_dependent
from pullback.modules.linearized import copy_of

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Landscape(Shown):
    """A function and where to begin on it.

    Attributes:
        name: in titles.
        function: (..., d) -> (...), differentiable, each point on its own.
        start: (d,).
        minimisers: the points where it is least, (M, d); M is 0 where they are not known, or none exist.
        bounds: of a picture of the first two coordinates: ((low, high), (low, high)).
    """

    name: str
    function: Function
    start: Tensor
    minimisers: Tensor
    bounds: tuple[tuple[float, float], tuple[float, float]] = ((-2.0, 2.0), (-2.0, 2.0))

    def __call__(self, x: Any) -> Tensor:
        """Values at points, (..., d) -> (...)."""
        return self.function(x if isinstance(x, Tensor) else values(x, "x", self.name))

    def hessian(self, x: Any) -> Tensor:
        """Second derivatives at a point, (d, d)."""
        point = values(x, "x", "Landscape.hessian").to(self.start.dtype)
        if point.dim() != 1 or (len(self.start) and len(point) != len(self.start)):
            expected = f"`x` ({len(self.start) or 'd'},)"
            raise input_error("Landscape.hessian", expected, f"shape {tuple(point.shape)}", "Pass one point")
        return torch.func.jacrev(torch.func.grad(self.function))(point)


def _quadratic(x: Tensor) -> Tensor:
    return 50 * x[..., 0].square() + x[..., 1].square() / 2


def _ravine(x: Tensor) -> Tensor:
    """Curvatures 1000 and 1, turned by 30 degrees, so that no coordinate is one of its own."""
    c, s = math.cos(math.pi / 6), 0.5
    return 500 * (c * x[..., 0] + s * x[..., 1]).square() + (c * x[..., 1] - s * x[..., 0]).square() / 2


def _rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1].square()).square() + (1 - x[..., :-1]).square()).sum(-1)


def _saddle(x: Tensor) -> Tensor:
    return (x[..., 0].square() - x[..., 1].square()) / 2


def _monkey_saddle(x: Tensor) -> Tensor:
    return x[..., 0] ** 3 - 3 * x[..., 0] * x[..., 1].square()


def _plateau(x: Tensor) -> Tensor:
    return 1 - torch.exp(-x.square().sum(-1) / 2)


def _double_well(x: Tensor) -> Tensor:
    return (x**4 / 4 - x.square() / 2).sum(-1)


def _two_layers(x: Tensor) -> Tensor:
    return (x[..., 0] * x[..., 1] - 1).square() / 2


def _three_layers(x: Tensor) -> Tensor:
    return (x[..., 0] * x[..., 1] * x[..., 2] - 1).square() / 2


def _beale(x: Tensor) -> Tensor:
    terms = ((1.5, 1), (2.25, 2), (2.625, 3))
    each = [(a - x[..., 0] + x[..., 0] * x[..., 1] ** k).square() for a, k in terms]
    return each[0] + each[1] + each[2]


def _himmelblau(x: Tensor) -> Tensor:
    return (x[..., 0].square() + x[..., 1] - 11).square() + (x[..., 0] + x[..., 1].square() - 7).square()


def _rastrigin(x: Tensor) -> Tensor:
    return (10 + x.square() - 10 * torch.cos(2 * math.pi * x)).sum(-1)


def _styblinski_tang(x: Tensor) -> Tensor:
    return (x**4 - 16 * x.square() + 5 * x).sum(-1) / 2


def _made(
    name: str, function: Function, start: Sequence[float], minimisers: Sequence[Sequence[float]], reach: float = 2.0
) -> Landscape:
    points = torch.tensor(minimisers, dtype=torch.float64).reshape(-1, len(start))
    return Landscape(name, function, torch.tensor(start, dtype=torch.float64), points, ((-reach, reach),) * 2)


_WELLS = [[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]
_HIMMELBLAU = [
    [3.0, 2.0],
    [-2.805118086952745, 3.131312518250573],
    [-3.779310253377747, -3.283185991286170],
    [3.584428340330492, -1.848126526964404],
]
_LANDSCAPES = {
    each.name: each
    for each in (
        _made("quadratic", _quadratic, [1.0, 1.0], [[0.0, 0.0]]),
        _made("ravine", _ravine, [-1.5, 1.0], [[0.0, 0.0]]),
        _made("rosenbrock", _rosenbrock, [-1.2, 1.0], [[1.0, 1.0]]),
        _made("saddle", _saddle, [1.0, 0.01], []),
        _made("monkey_saddle", _monkey_saddle, [0.5, 0.01], []),
        _made("plateau", _plateau, [2.5, 2.0], [[0.0, 0.0]], 3.0),
        _made("double_well", _double_well, [1.4, 0.01], _WELLS),
        _made("two_layers", _two_layers, [0.1, -0.05], []),
        _made("three_layers", _three_layers, [0.1, 0.1, 0.1], []),
        _made("beale", _beale, [1.0, 1.5], [[3.0, 0.5]], 4.5),
        _made("himmelblau", _himmelblau, [0.0, 0.0], _HIMMELBLAU, 5.0),
        _made("rastrigin", _rastrigin, [1.8, 0.7], [[0.0, 0.0]], 2.5),
        _made("styblinski_tang", _styblinski_tang, [0.2, 0.5], [[-2.903534027771177] * 2], 4.0),
    )
}
LANDSCAPES = tuple(_LANDSCAPES)  # their names


def landscape(name: str) -> Landscape:
    """A function by its name, in float64.

    - "quadratic": curvatures 100 and 1; "ravine": 1000 and 1 along directions that are no coordinates.
    - "rosenbrock": a curved valley; "beale": flat, with steep walls.
    - "saddle": x^2 / 2 - y^2 / 2; "monkey_saddle": without curvature at its saddle.
    - "plateau": a well in a plain, 1 - exp(-|x|^2 / 2).
    - "two_layers", "three_layers": half the squared error of a chain of weights whose product should be 1: a saddle at
      0, with negative curvature and without any.
    - "double_well", "himmelblau", "rastrigin", "styblinski_tang": several minima.

    Raises:
        InputError: no such name.

    Example:
        >>> valley = landscape("rosenbrock")
        >>> float(valley(valley.start)), valley.minimisers.tolist()
        (24.199999999999996, [[1.0, 1.0]])
    """
    check_option("landscape", "name", name, LANDSCAPES)
    return _LANDSCAPES[name]


def network_landscape(model: nn.Module, loss_fn: LossFunction, x: Batch, y: Batch) -> Landscape:
    """The mean loss of a network over some samples, as a function of all its trainable parameters in one vector.

    Args:
        model: in eval mode, or without layers that have one; it is copied, not changed. Its parameters, in their
            order, flat, are the start.
        loss_fn: as everywhere.
        x: inputs, (N, ...).
        y: targets.

    Raises:
        UnsupportedError: modules in train mode that answer differently in eval mode.
        InputError: no samples, or another number of targets.

    Cost: at B points, B forward passes in one batch (``torch.vmap``).

    Example:
        >>> model = nn.Linear(2, 1)
        >>> found = network_landscape(model, nn.MSELoss(), torch.ones(4, 2), torch.zeros(4, 1))
        >>> found.start.shape, found(torch.zeros(5, 3)).tolist()
        (torch.Size([3]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """
    where = "network_landscape"
    ModelView.of(model, where=where)
    check_batch(where, x, y)
    if (module := mode_dependent(model)) is not None:
        raise unsupported(where, "a model whose answers do not change", f"{module} in train mode", "Call model.eval()")
    copy, x, y = copy_of(model), copied(x), copied(y)
    with torch.no_grad():
        per_sample_loss(loss_fn, evaluate(copy, x), y, where)  # labels and shapes, which vmap cannot look at
    view = ModelView.of(copy, where=where)

    def at(w: Tensor) -> Tensor:
        return unchecked_loss(loss_fn, view(x, view.unflatten(w)), y, where).mean()

    def function(w: Tensor) -> Tensor:
        return at(w) if w.dim() == 1 else torch.vmap(function)(w)

    start = view.flatten(view.parameters).detach()
    return Landscape(type(model).__name__, function, start, start.new_zeros(0, len(start)))


def as_landscape(given: Any, where: str) -> Landscape:
    """What a caller may move on: a name, a ``Landscape``, a ``Quadratic``, or a function, which has no start."""
    if isinstance(given, Landscape):
        return given
    if isinstance(given, Quadratic):
        return quadratic_landscape(given)
    if callable(given):
        none = torch.zeros(0, dtype=torch.float64)
        return Landscape(getattr(given, "__name__", type(given).__name__), given, none, none.reshape(0, 0))
    check_option(where, "landscape", given, LANDSCAPES)
    return _LANDSCAPES[given]


def quadratic_landscape(problem: Quadratic) -> Landscape:
    """A ``Quadratic`` as something torch can differentiate; it starts at ones."""
    h, Q, b, c = problem.eigenvalues, problem.eigenvectors, problem.b, problem.c
    A = None if torch.equal(Q, torch.eye(len(h), dtype=Q.dtype)) else (Q * h) @ Q.T

    def function(x: Tensor) -> Tensor:
        Ax = h * x if A is None else x @ A
        return ((Ax / 2 + b) * x).sum(-1) + c

    try:
        least = problem.minimiser[None]
    except InputError:  # it falls without end
        least = h.new_zeros(0, len(h))
    return Landscape("quadratic", function, torch.ones_like(h), least)
