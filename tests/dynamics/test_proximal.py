"""Steps from a distance, and descent in outputs (S1-40 to S1-43, S1-47)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import dynamics
from pullback.dynamics import Quadratic, proximal_step

F64 = torch.float64
QUADRATICS = json.loads((Path(__file__).parents[1] / "data" / "dynamics.json").read_text())["quadratics"]
KNOWN, ROSENBROCK = QUADRATICS["proximal"], QUADRATICS["rosenbrock"]
H = torch.tensor(KNOWN["H"], dtype=F64)
X = torch.tensor(KNOWN["theta"], dtype=F64)
PROBLEM = Quadratic(H)


def in_metric(G: Tensor) -> Any:
    return lambda new, old: (new - old) @ G @ (new - old) / 2


def divergence(new: Tensor, old: Tensor) -> Tensor:
    """Of positive vectors: sum of new log(new / old) - new + old."""
    return (new * (new / old).log() - new + old).sum()


def assert_close_to(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=F64), rtol=0, atol=1e-10)


def test_steps_of_the_notes() -> None:
    """S1-40 to S1-42: gradient descent, natural gradient, damped Newton, and the literal |.|^2."""
    plain = proximal_step(PROBLEM, X)
    assert_close_to(X + plain.step, KNOWN["gd with 1/2||.||^2"])
    assert_close_to(plain.gradient, KNOWN["grad"])
    literal = proximal_step(PROBLEM, X, distance=lambda new, old: (new - old).square().sum())
    assert_close_to(X + literal.step, KNOWN["gd_lam=1 with ||.||^2 (seed literal 2.1.2)"])
    natural = proximal_step(PROBLEM, X, 10.0, distance=in_metric(H))
    assert_close_to(X + natural.step, KNOWN["natural_grad_lam=10_G=H"])
    damped = proximal_step(PROBLEM, X, loss_order=2)
    assert_close_to(X + damped.step, KNOWN["damped_newton_lam=1_G=I"])
    names = [each.method for each in (plain, literal, natural, damped)]
    assert names == ["gradient descent", "gradient descent", "natural gradient", "damped Newton"]


def test_adaptive_methods_are_diagonal_metrics() -> None:
    """S1-43: the root of the diagonal empirical Fisher as metric is Adagrad's first step, lr times the sign."""
    g = H @ X
    step = proximal_step(PROBLEM, X, 10.0, distance=in_metric(torch.diag(g.square().sqrt()))).step
    assert_close_to(step, -0.1 * g.sign())
    assert_close_to(dynamics.simulate(lambda p: torch.optim.Adagrad(p, lr=0.1), PROBLEM, X, 1).x[1] - X, step)


def test_a_large_weight_is_a_small_step() -> None:
    """E1.22: as the weight grows, all updates become the natural gradient of 1 / weight."""
    x = torch.tensor([-0.5, 0.8], dtype=F64)
    G = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    first = -torch.linalg.solve(G, torch.func.grad(dynamics.landscape("rosenbrock").function)(x))
    errors = []
    for weight in (1e5, 1e6):
        for orders in ((1, 2), (2, 2), (None, 2), (None, None), (1, None)):
            found = proximal_step(
                "rosenbrock", x, weight, distance=in_metric(G), loss_order=orders[0], distance_order=orders[1]
            )
            errors.append(float((found.step * weight - first).norm() / first.norm()))
    assert max(errors[:5]) < 2e-2
    assert max(errors[5:]) < 2e-3


@pytest.mark.parametrize("weight", [0.5, 2.0, 30.0])
def test_mirror_descent(weight: float) -> None:
    """A linear function at the price of the divergence: multiplicative updates."""
    x = torch.tensor([0.2, 0.5, 1.5], dtype=F64)
    slope = torch.tensor([1.0, -0.5, 0.2], dtype=F64)
    found = proximal_step(lambda w: (slope * w).sum(-1), x, weight, distance=divergence, distance_order=None)
    torch.testing.assert_close(x + found.step, x * torch.exp(-slope / weight), rtol=1e-8, atol=1e-10)
    assert found.method == "mirror descent"
    torch.testing.assert_close(found.metric, torch.diag(1 / x))


def test_proximal_point_of_a_quadratic_is_damped_newton() -> None:
    found = proximal_step(PROBLEM, X, 0.7, loss_order=None)
    assert found.method == "proximal point"
    assert_close_to(found.step, proximal_step(PROBLEM, X, 0.7, loss_order=2).step)
    valley = proximal_step("rosenbrock", [-1.2, 1.0], 2.0, loss_order=None, distance_order=None)
    at = torch.tensor([-1.2, 1.0], dtype=F64) + valley.step
    slope = torch.func.grad(dynamics.landscape("rosenbrock").function)(at)
    assert_close_to(
        slope + 2.0 * valley.step, [0.0, 0.0]
    )  # the implicit step: x - slope at where it leads, over the weight


def residuals(x: Tensor) -> Tensor:
    """Rosenbrock's function is the squared length of these."""
    return torch.stack([1 - x[0], 10 * (x[1] - x[0].square())])


def square(z: Tensor) -> Tensor:
    return z.square().sum()


def test_rosenbrock_in_outputs() -> None:
    """S1-47: in parameters, in outputs, and Gauss-Newton in two steps."""
    start = ROSENBROCK["start"]
    quick = dynamics.output_space_descent(residuals, square, start, 3, 1.0, "gauss_newton")
    assert_close_to(quick.x, ROSENBROCK["gauss_newton_iterates"])
    assert float(quick.loss[0]) == pytest.approx(ROSENBROCK["f0"], rel=1e-14)
    outer = dynamics.output_space_descent(residuals, square, start, 100, 0.1)
    for step, known in ROSENBROCK["output_space_gd_step0.1"].items():
        assert_close_to(outer.x[int(step)], known["w"])
        assert float(outer.loss[int(step)]) == pytest.approx(known["f"], rel=1e-6, abs=1e-22)
    slow = dynamics.output_space_descent(residuals, square, start, 1000, 1e-3, "parameters")
    for step in ("100", "1000"):
        assert_close_to(slow.x[int(step)], ROSENBROCK["gd_lr1e-3"][step]["w"])


@pytest.mark.slow
def test_rosenbrock_in_parameters_takes_long() -> None:
    """S1-47, to the end: the same by torch's own optimizer."""
    found = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=1e-3), "rosenbrock", ROSENBROCK["start"], 20000)
    for step, known in ROSENBROCK["gd_lr1e-3"].items():
        assert_close_to(found.x[int(step)], known["w"])
        assert float(found.loss[int(step)]) == pytest.approx(known["f"], rel=1e-8)


@pytest.mark.parametrize(("d", "m"), [(3, 3), (2, 4), (5, 3)])
def test_outputs_are_gauss_newton_for_squared_errors(d: int, m: int) -> None:
    """For H_z = 2 the rate is doubled; of another loss they part."""
    made = torch.Generator().manual_seed(d)
    W = torch.randn(m, d, generator=made, dtype=F64)
    function = lambda x: torch.tanh(W @ x) + x.sum()
    x0 = torch.randn(d, generator=made, dtype=F64)
    outer = dynamics.output_space_descent(function, square, x0, 6, 0.05)
    inner = dynamics.output_space_descent(function, square, x0, 6, 0.1, "gauss_newton")
    torch.testing.assert_close(outer.x, inner.x, rtol=1e-9, atol=1e-10)
    J = torch.func.jacrev(function)(x0)
    expected = -0.1 * torch.linalg.pinv(J.T @ J) @ J.T @ function(x0)
    torch.testing.assert_close(outer.x[1] - x0, expected, rtol=1e-7, atol=1e-9)
    quartic = lambda z: (z**4).sum() + square(z)
    a, b = (dynamics.output_space_descent(function, quartic, x0, 1, 0.1, k).x[1] for k in ("outputs", "gauss_newton"))
    assert float((a - b).norm()) > 1e-3
    Hz = torch.diag(12 * function(x0) ** 2 + 2)
    g = 4 * function(x0) ** 3 + 2 * function(x0)
    torch.testing.assert_close(b - x0, -0.1 * torch.linalg.pinv(J.T @ Hz @ J) @ J.T @ g, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: proximal_step(PROBLEM, X, 0.0), "`weight` above 0, got 0.0"),
        (lambda: proximal_step(PROBLEM, X, math.inf), "a finite `weight`, got inf"),
        (
            lambda: proximal_step(PROBLEM, X, distance=lambda a, b: a - b),
            r"`distance` that returns one number, got shape",
        ),
        (lambda: proximal_step(PROBLEM, X, distance=lambda a, b: 3.0), "`distance` that returns one number, got float"),
        (lambda: proximal_step(PROBLEM, X, distance="kl"), "`distance` that returns one number, got str"),
        (
            lambda: dynamics.output_space_descent(residuals, lambda z: z, [1.0, 1.0], 1, 0.1),
            "`loss` that returns one nu",
        ),
        (
            lambda: dynamics.output_space_descent(lambda x: None, square, [1.0, 1.0], 1, 0.1),
            r"outputs \(m,\), got .* -> \?",
        ),
        (lambda: proximal_step(PROBLEM, X, loss_order=3), "`loss_order` to be one of 1, 2, None, got 3"),
        (lambda: proximal_step(PROBLEM, X, distance_order=1), "`distance_order` to be one of 2, None, got 1"),
        (lambda: proximal_step(PROBLEM, [[1.0, 2.0]]), r"`x` \(d,\), got shape \(1, 2\)"),
        (lambda: proximal_step(PROBLEM, [math.nan, 2.0]), "finite numbers in `x`"),
        (lambda: proximal_step(PROBLEM, X, distance=lambda a, b: (a - b).sum()), "without slope at distance 0"),
        (lambda: proximal_step(PROBLEM, X, distance=lambda a, b: (a - b)[0] ** 2), "distance with positive curvature"),
        (lambda: proximal_step("saddle", [1.0, 1.0], 0.5, loss_order=2), "negative curvature, got an eigenvalue -0.5"),
        (lambda: proximal_step("saddle", [1.0, 1.0], 0.5, loss_order=None), "a least value nearby"),
        (lambda: dynamics.output_space_descent(residuals, square, [1.0, 1.0], 1, 0.0), "`lr` above 0"),
        (lambda: dynamics.output_space_descent(residuals, square, [1.0, 1.0], -1, 0.1), "`steps` at least 0"),
        (lambda: dynamics.output_space_descent(residuals, square, [9.0, 1.0], 300, 5.0), "a path that stays finite"),
        (
            lambda: dynamics.output_space_descent(residuals, square, [9.0, 1.0], 300, 9.0, "gauss_newton"),
            "a path that stays finite, got NaN or Inf on the way",
        ),
        (lambda: dynamics.output_space_descent(residuals, square, [9.0, 1.0], 1, 1e308), "a path that stays finite"),
        (lambda: dynamics.output_space_descent(residuals, square, [math.inf, 1.0], 1, 0.1), "finite numbers in `x0`"),
        (lambda: dynamics.output_space_descent(residuals, square, [[1.0, 1.0]], 1, 0.1), r"parameters \(d,\) -> out"),
        (lambda: dynamics.output_space_descent(residuals, square, [1.0, 1.0], 1, 0.1, "z"), "`method` to be one of"),
        (
            lambda: dynamics.output_space_descent(residuals, lambda z: -square(z), [2.0, 1.0], 1, 0.1, "gauss_newton"),
            "convex in the outputs, got a curvature of -2",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
