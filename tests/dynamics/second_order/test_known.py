"""Known iterates: quadratics, Rosenbrock, logistic regression, tiny networks.

S1-40 to S1-44, S1-46, S1-47, S1-52, S1-78, S1-84 to S1-88.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.dynamics import DampedNewton, HessianFree, LevenbergMarquardt, NaturalGradient, Newton, SaddleFreeNewton
from tests.compare import assert_different, assert_same

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[2] / "data" / "dynamics.json").read_text())
QUADRATICS, SECOND = KNOWN["quadratics"], KNOWN["second_order"]
ONE = torch.zeros(1, 1, dtype=F64)  # a batch of one sample, for losses that ask nothing of it


def assert_value(found: Tensor, expected: Any, tolerance: float = 1e-10) -> None:
    assert_same(found.detach(), torch.as_tensor(expected, dtype=F64), tolerance, scale=1.0)


class Point(nn.Module):
    """Weights that are a point w, (1, d); the loss does with it what it likes."""

    def __init__(self, start: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(start, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def quadratic(H: Any, b: Any = 0.0) -> Any:
    H, b = torch.as_tensor(H, dtype=F64), torch.as_tensor(b, dtype=F64)
    return lambda w, y: (w * (w @ H)).sum(1) / 2 + (b * w).sum(1)


def test_newton_solves_a_quadratic_in_one_step() -> None:
    """S1-78, in the shapes of a linear model: the minimum of least squares."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 4, dtype=F64), torch.randn(12, 2, dtype=F64)
    model = nn.Linear(4, 2).double()
    for optimizer in (Newton(model, nn.MSELoss()), Newton(model, nn.MSELoss(), dense_limit=0, tol=1e-13)):
        nn.init.normal_(model.weight)
        optimizer.step(x, y)
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1, dtype=F64)], 1), y).solution
        assert_value(model.weight, solution[:4].T)
        assert_value(model.bias, solution[4])
        assert optimizer.last.predicted_decrease == pytest.approx(
            optimizer.last.loss - nn.MSELoss()(model(x), y).item(), rel=1e-9
        )


def test_steps_near_a_saddle() -> None:
    """S1-52: Newton is drawn to it in one step, truncation stays on its ridge, saddle-free Newton goes down."""
    known = QUADRATICS["saddle_x2_minus_y2"]
    loss, start = quadratic([[1.0, 0.0], [0.0, -1.0]]), [1.0, 0.01]
    ways = {
        "newton_T1": Newton(Point(start), loss, indefinite="keep"),
        "saddle_free_newton_T1": SaddleFreeNewton(Point(start), loss, damping=0.0),
        "truncated(neg dirs dropped)_T20": Newton(Point(start), loss, indefinite="drop"),
    }
    for name, optimizer in ways.items():
        for _ in range(20 if "T20" in name else 1):
            optimizer.step(ONE, ONE)
        assert_value(optimizer.model.w, known[name])
        assert optimizer.last.smallest_eigenvalue == pytest.approx(-1.0)
    assert "may be a saddle" in ways["newton_T1"].last.action
    damped = Newton(Point(start), loss, damping=2.0)
    for _ in range(20):
        damped.step(ONE, ONE)
    assert_value(damped.model.w, known["damped_newton_alpha2_T20"], 1e-10 * 10486)


def test_an_indefinite_matrix_is_refused_or_damped_and_said() -> None:
    loss, start = quadratic([[1.0, 0.0], [0.0, -1.0]]), [1.0, 0.01]
    for limit in (1000, 0):
        refusing = Newton(Point(start), loss, dense_limit=limit)
        remedy = "Pass a `damping` above it, indefinite='damp', or use DampedNewton or SaddleFreeNewton"
        with pytest.raises(ValueError, match=rf"expected a positive definite Hessian, got a smallest.* -1\. {remedy}"):
            refusing.step(ONE, ONE)
        assert_value(refusing.model.w, start)
        damped = DampedNewton(Point(start), loss, damping=0.1, dense_limit=limit)
        damped.step(ONE, ONE)
        assert damped.last.action.startswith("damped: raised to 1.9, as the smallest curvature was -0.9")
        assert damped.model.w[1].abs() > 0.01  # goes away from the saddle
    with pytest.raises(ValueError, match=r"at most 1 with 'keep', got 2 parameters\. Raise `dense_limit`"):
        Newton(Point(start), loss, indefinite="keep", dense_limit=1).step(ONE, ONE)
    flat = quadratic([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"a Hessian that can be inverted, got an eigenvalue of 0"):
        Newton(Point(start), flat, indefinite="keep").step(ONE, ONE)
    with pytest.raises(ValueError, match=r"expected a positive definite Hessian, got a smallest eigenvalue of 0"):
        Newton(Point(start), flat).step(ONE, ONE)
    with pytest.raises(ValueError, match=r"a Hessian without eigenvalue 0, got one within its rounding"):
        SaddleFreeNewton(Point(start), flat, damping=0.0).step(ONE, ONE)


def test_truncated_newton_stops_at_negative_curvature() -> None:
    """The first direction is the gradient: along it the curvature is taken in size."""
    optimizer = HessianFree(Point([0.0, 1.0]), quadratic([[1.0, 0.0], [0.0, -1.0]]), damping=0.5, curvature="hessian")
    optimizer.step(ONE, ONE)
    assert optimizer.last.action == "stopped at curvature -0.5"
    assert not optimizer.last.converged
    assert_value(optimizer.model.w, [0.0, 3.0])  # 1 + g / 0.5


def test_a_step_for_a_given_distance() -> None:
    """S1-40 to S1-42: gradient, natural gradient and damped Newton as proximal steps."""
    known = QUADRATICS["proximal"]
    H, theta = known["H"], known["theta"]
    newton = Newton(Point(theta), quadratic(H), damping=1.0)
    newton.step(ONE, ONE)
    assert_value(newton.model.w, known["damped_newton_lam=1_G=I"])
    # the quadratic as least squares, whose Fisher matrix (of a normal distribution with variance 1/2 a residual) is H
    root = torch.linalg.cholesky(torch.tensor(H, dtype=F64)).T / math.sqrt(2)
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([theta], dtype=F64)
    natural = NaturalGradient(model, nn.MSELoss(reduction="sum"), lr=1 / 10, damping=0.0)
    natural.step(math.sqrt(2) * root, torch.zeros(2, 1, dtype=F64))
    assert_value(model.weight[0], known["natural_grad_lam=10_G=H"])


class Rosenbrock(nn.Module):
    """Its residuals (1 - x, 10 (y - x^2)), whose squares sum to the function."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(QUADRATICS["rosenbrock"]["start"], dtype=F64))

    def forward(self, batch: Tensor) -> Tensor:
        x, y = self.w
        return torch.stack([1 - x, 10 * (y - x * x)]).expand(len(batch), -1)


def test_gauss_newton_on_rosenbrock() -> None:
    """S1-47 (c): two steps to the minimum, the first of which climbs; a trust region takes none that does."""
    known = QUADRATICS["rosenbrock"]
    model, loss_fn, target = Rosenbrock(), nn.MSELoss(reduction="sum"), torch.zeros(1, 2, dtype=F64)
    natural = NaturalGradient(model, loss_fn, damping=0.0, fisher="true")  # equal to Gauss-Newton here
    for expected in known["gauss_newton_iterates"][1:3]:
        natural.step(ONE, target)
        assert_value(model.w, expected, 1e-9)
    careful = LevenbergMarquardt(Rosenbrock(), loss_fn, damping=1e-3)
    losses = [float(careful.step(ONE, target)) for _ in range(40)]
    assert losses[0] == pytest.approx(known["f0"], rel=1e-12)
    assert all(b <= a for a, b in itertools.pairwise(losses))
    assert_value(careful.model.w, [1.0, 1.0], 1e-6)


class Tiny(nn.Module):
    """w2 act(w1 x)."""

    def __init__(self, act: Any, w: Any) -> None:
        super().__init__()
        self.act, self.w = act, nn.Parameter(torch.tensor(w, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w[1] * self.act(self.w[0] * x)


def half_squared(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum(1) / 2


def test_steps_of_a_tiny_network() -> None:
    """S1-44, S1-46: Newton and Gauss-Newton by the known matrices; a Hessian that is indefinite and is said to be."""
    known = SECOND["tiny_tanh_net"]
    x, t = torch.tensor([[known["x"]]], dtype=F64), torch.tensor([[known["t"]]], dtype=F64)
    w = torch.tensor(known["w"], dtype=F64)
    g = (known["f"] - known["t"]) * torch.tensor(known["J"], dtype=F64)
    H, G = (torch.tensor(known[name], dtype=F64) for name in ("hessian", "gauss_newton"))
    newton = Newton(Tiny(torch.tanh, known["w"]), half_squared, indefinite="keep")
    newton.step(x, t)
    assert_value(newton.model.w, w - torch.linalg.solve(H, g))
    eye = torch.eye(2, dtype=F64)
    gauss = LevenbergMarquardt(Tiny(torch.tanh, known["w"]), half_squared, damping=0.5)
    gauss.step(x, t)
    assert_value(gauss.model.w, w - torch.linalg.solve(G + gauss.last.damping * eye, g))
    free = SaddleFreeNewton(Tiny(torch.tanh, known["w"]), half_squared, damping=0.1)
    free.step(x, t)
    values, V = torch.linalg.eigh(H)
    assert_value(free.model.w, w - V @ ((V.T @ g) / (values.abs() + 0.1)))
    assert free.last.action == "step: 1 of 2 eigenvalues were negative"


def test_steps_of_a_tiny_relu_network() -> None:
    """S1-46: between the layers of a piecewise linear network the Hessian is indefinite, and each method says so."""
    known = SECOND["tiny_relu_net_active"]
    x, t, w = torch.tensor([[1.5]], dtype=F64), torch.tensor([[0.3]], dtype=F64), [0.5, 2.0]
    H, G = (torch.tensor(known[name], dtype=F64) for name in ("hessian", "gauss_newton"))
    g = (known["f"] - 0.3) * torch.tensor([3.0, 0.75], dtype=F64)
    values, V = torch.linalg.eigh(H)
    with pytest.raises(ValueError, match=r"expected a positive definite Hessian, got a smallest eigenvalue of -1\.07"):
        Newton(Tiny(torch.relu, w), half_squared).step(x, t)
    assert_value(values, [-1.066857, 10.629357], 1e-6)
    free = SaddleFreeNewton(Tiny(torch.relu, w), half_squared, damping=0.1)
    free.step(x, t)
    assert_value(free.model.w, torch.tensor(w, dtype=F64) - V @ ((V.T @ g) / (values.abs() + 0.1)))
    assert free.last.action == "step: 1 of 2 eigenvalues were negative"
    for kind, matrix in ((DampedNewton, H), (LevenbergMarquardt, G)):
        careful = kind(Tiny(torch.relu, w), half_squared, damping=0.1)
        careful.step(x, t)
        damped = matrix + careful.last.damping * torch.eye(2, dtype=F64)
        assert_value(careful.model.w, torch.tensor(w, dtype=F64) - torch.linalg.solve(damped, g))
        assert careful.last.loss == pytest.approx((known["f"] - 0.3) ** 2 / 2, rel=1e-12)
        assert careful.last.new_loss < careful.last.loss
        assert careful.history[0].action.startswith("damped: raised to" if kind is DampedNewton else "step")


LOGISTIC = SECOND["logistic_fisher"]


def logistic() -> tuple[nn.Linear, Tensor, Tensor]:
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([LOGISTIC["w"]], dtype=F64)
    return model, torch.tensor(LOGISTIC["X"], dtype=F64), torch.tensor(LOGISTIC["y"], dtype=F64).unsqueeze(1)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("form", ["parameters", "kernel"])
def test_natural_gradient_of_logistic_regression(form: str, fisher: str) -> None:
    """S1-84, S1-87: with the known matrices; without damping the known direction, which is Newton's too."""
    model, x, y = logistic()
    F = torch.tensor(LOGISTIC["true_fisher=GGN=Hessian" if fisher == "true" else "empirical_fisher"], dtype=F64)
    g = pb.reference.gradient_matrix(model, nn.BCEWithLogitsLoss(), x, y).mean(0)
    w = torch.tensor(LOGISTIC["w"], dtype=F64)
    NaturalGradient(model, nn.BCEWithLogitsLoss(), 0.3, 0.2, fisher=fisher, form=form).step(x, y)
    assert_value(model.weight[0], w - 0.3 * torch.linalg.solve(F + 0.2 * torch.eye(2, dtype=F64), g))


def test_the_known_direction_and_newtons() -> None:
    for make in (lambda m, f: NaturalGradient(m, f, 0.1, 0.0), lambda m, f: Newton(m, f, 0.1)):
        model, x, y = logistic()
        make(model, nn.BCEWithLogitsLoss()).step(x, y)
        direction = torch.tensor(LOGISTIC["natural_gradient"], dtype=F64)
        assert_value(model.weight[0], torch.tensor(LOGISTIC["w"], dtype=F64) - 0.1 * direction)


class Recoordinated(nn.Module):
    """The network with its weights w = A v in other coordinates v."""

    def __init__(self, model: nn.Module, A: Tensor) -> None:
        super().__init__()
        self.A, self.inner = A, [model]
        flat = nn.utils.parameters_to_vector(model.parameters()).detach()
        self.v = nn.Parameter(torch.linalg.solve(A, flat))

    def forward(self, x: Tensor) -> Tensor:
        model, at, named = self.inner[0], 0, {}
        for name, p in model.named_parameters():
            named[name] = (self.A @ self.v)[at : at + p.numel()].view(p.shape)
            at += p.numel()
        return torch.func.functional_call(model, named, (x,))


def test_natural_gradient_does_not_see_coordinates() -> None:
    """S1-87: the same function after w -> A w; a linear model moves alike after any step, gradient descent does not."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 3, dtype=F64), torch.randn(30, 2, dtype=F64)
    A = torch.randn(8, 8, dtype=F64)
    start = nn.Linear(3, 2).double().state_dict()
    ends = {}
    for kind in ("natural", "gradient"):
        plain = nn.Linear(3, 2).double()
        plain.load_state_dict(start)
        other = Recoordinated(plain, A)
        for model in (plain, other):
            natural = NaturalGradient(model, nn.MSELoss(), 0.5, 0.0)
            descent = torch.optim.SGD(model.parameters(), 0.05)
            for _ in range(2):
                if kind == "natural":
                    natural.step(x, y)
                else:
                    descent.zero_grad()
                    nn.MSELoss()(model(x), y).backward()
                    descent.step()
        ends[kind] = plain(x).detach(), other(x).detach()
    assert_same(*ends["natural"], 1e-9)
    assert_different(*ends["gradient"], 1e-2)


def test_a_small_step_keeps_its_distance_in_the_models_metric() -> None:
    """S1-85, S1-86, S1-88: KL of a step is half of d^T F d, which is the mean of squared changes of log-likelihood."""
    model, x, _ = logistic()
    loss_fn = nn.BCEWithLogitsLoss()
    F = torch.tensor(LOGISTIC["true_fisher=GGN=Hessian"], dtype=F64)
    p = model(x).sigmoid().detach()
    y = torch.zeros_like(p)  # F does not depend on the targets
    H = pb.Hessian(model, loss_fn, (x, y)).to_dense()
    assert_value(H, F)  # -E d2 ln p, for the logits' own family
    d = 1e-4 * torch.tensor([1.0, -2.0], dtype=F64)
    J = x  # derivative of the logits
    change = [(J @ d).unsqueeze(1) * (bit - p) for bit in (0.0, 1.0)]
    mean_square = float(((1 - p) * change[0].square() + p * change[1].square()).mean())
    assert mean_square == pytest.approx(float(d @ F @ d), rel=1e-10)
    with torch.no_grad():
        model.weight += d
    q = model(x).sigmoid().detach()
    kl = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean())
    assert kl == pytest.approx(float(d @ F @ d) / 2, rel=1e-3)


def test_adagrad_as_a_metric() -> None:
    """S1-43: its first step is the sign of the gradient, as diag(empirical Fisher)^(-1/2) g of one sample is."""
    model, x, y = logistic()
    G = pb.reference.gradient_matrix(model, nn.BCEWithLogitsLoss(), x[1:2], y[1:2])
    expected = model.weight.detach()[0] - 0.1 * G[0] / G.square().sum(0).sqrt()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, eps=0.0)
    nn.BCEWithLogitsLoss()(model(x[1:2]), y[1:2]).backward()
    optimizer.step()
    assert_value(model.weight[0], expected)
