"""Trajectories on quadratics (S0-38, S0-39, S0-41, S1-52, S1-76, S1-78, S2-15 to S2-17, S3-09 to S3-11, S3-13)."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback.dynamics import Quadratic
from pullback.dynamics.quadratic.settings import Method

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[2] / "data" / "dynamics.json").read_text())["quadratics"]
RAVINE = Quadratic([100.0, 1.0])  # the seeds' example
START = [1.0, 1.0]
METHODS = get_args(Method)


def drawn(size: int, seed: int, signs: str = "positive") -> tuple[Tensor, Tensor, Tensor]:
    """A matrix without small eigenvalues, b and a start."""
    made = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(size, size, generator=made, dtype=F64))[0]
    h = 0.2 + torch.rand(size, generator=made, dtype=F64)
    if signs != "positive":
        h[::2] = -h[::2]
    b, x0 = torch.randn(2, size, generator=made, dtype=F64)
    A = (Q * h) @ Q.T
    return (A + A.T) / 2, b, x0


def stepped(method: str, A: Tensor, b: Tensor, x0: Tensor, steps: int, lr: float, extra: float) -> Tensor:
    """The same by dense algebra, step by step; ``extra`` is the momentum or the damping."""
    x, p, path = x0.clone(), torch.zeros_like(x0), [x0.clone()]
    eye = torch.eye(len(A), dtype=F64)
    values, vectors = torch.linalg.eigh(A)
    divide = {
        "newton": A,
        "damped_newton": A + extra * eye,
        "natural_gradient": A + extra * eye,
        "saddle_free_newton": (vectors * (values.abs() + extra)) @ vectors.T,
    }
    for _ in range(steps):
        if method == "heavy_ball":
            p = extra * p - lr * (A @ x + b)
            x = x + p
        elif method == "nesterov":
            p = extra * p - lr * (A @ (x + extra * p) + b)
            x = x + p
        elif method == "truncated_newton":
            kept = torch.where(values > 0, 1 / (values + extra), 0.0)
            x = x - lr * (vectors * kept) @ vectors.T @ (A @ x + b)
        elif method in divide:
            x = x - lr * torch.linalg.solve(divide[method], A @ x + b)
        else:
            x = x - lr * (A @ x + b)
        path.append(x.clone())
    return torch.stack(path)


def options(method: str, extra: float) -> dict[str, Any]:
    if method in ("heavy_ball", "nesterov"):
        return {"momentum": extra}
    return {} if method in ("gradient_descent", "newton") else {"damping": extra}


@settings(deadline=None, max_examples=20)
@given(
    method=st.sampled_from(METHODS),
    size=st.integers(1, 5),
    steps=st.integers(0, 13),
    signs=st.sampled_from(["positive", "mixed"]),
    seed=st.integers(0, 99),
    extra=st.floats(0.05, 0.15),
)
def test_powers_are_the_steps(method: str, size: int, steps: int, signs: str, seed: int, extra: float) -> None:
    A, b, x0 = drawn(size, seed, signs)
    found = Quadratic(A, b).trajectory(method, x0, steps, lr=0.6, **options(method, extra))  # type: ignore[arg-type]
    torch.testing.assert_close(found, stepped(method, A, b, x0, steps, 0.6, extra), rtol=1e-9, atol=1e-11)


def test_the_matrix_is_the_hessian_of_the_loss() -> None:
    """S0-37: by autograd, and the condition number is that of its eigenvalues."""
    A, b, x0 = drawn(4, 7)
    for problem, matrix in ((Quadratic(A, b, 0.3), A), (RAVINE, torch.diag(torch.tensor([100.0, 1.0], dtype=F64)))):
        at = x0[: len(matrix)]
        torch.testing.assert_close(torch.autograd.functional.hessian(problem.loss, at), matrix, rtol=1e-12, atol=1e-12)
        assert problem.condition_number == pytest.approx(float(torch.linalg.cond(matrix)), rel=1e-10)


def test_stability_of_the_seeds() -> None:
    """S0-39, S3-10: A = diag(100, 1): bound 0.02, optimum 0.01980198, rate 0.98019802; four regimes."""
    known, best = KNOWN["gd_facts"], RAVINE.optimal("gradient_descent")
    assert RAVINE.stability_limit() == pytest.approx(0.02, abs=1e-12)
    assert best.lr == pytest.approx(known["2/(alpha+beta)"], abs=1e-12)
    assert best.rate == pytest.approx(known["rate"], abs=1e-12)
    assert (round(best.lr, 8), round(best.rate, 8)) == (0.01980198, 0.98019802)
    told = {0.009: "monotone", known["monotone_iff_eta<=1/alpha"]: "monotone", 0.015: "oscillating", 0.02: "critical"}
    for lr, regime in (told | {0.021: "divergent"}).items():
        assert RAVINE.regimes(lr=lr) == (regime, "monotone")


@settings(deadline=None, max_examples=10)
@given(size=st.integers(1, 5), seed=st.integers(0, 99), share=st.floats(0.05, 0.999))
def test_descent_is_powers_of_its_matrix(size: int, seed: int, share: float) -> None:
    """S3-10: (I - a A)^k; below 2 / lam_max all converge, the slow ones by a lam_i < 2 lam_i / lam_max = 2 / kappa."""
    A, b, x0 = drawn(size, seed)
    problem, values = Quadratic(A, b), torch.linalg.eigvalsh(A)
    lr = share * problem.stability_limit()
    power = torch.linalg.matrix_power(torch.eye(size, dtype=F64) - lr * A, 9)
    centre = -torch.linalg.solve(A, b)
    path = problem.trajectory("gradient_descent", x0, 9, lr=lr)
    torch.testing.assert_close(path[9], centre + power @ (x0 - centre), rtol=1e-9, atol=1e-11)
    rates = problem.rates("gradient_descent", lr=lr).sort().values
    torch.testing.assert_close(rates, (1 - lr * values).abs().sort().values, rtol=1e-9, atol=1e-11)
    assert bool((rates < 1).all())
    gained = 1 - float(1 - lr * values[0])  # along the flattest direction
    assert gained < 2 * float(values[0] / values[-1]) * (1 + 1e-12)
    assert problem.condition_number == pytest.approx(float(values[-1] / values[0]), rel=1e-9)


@pytest.mark.parametrize("lr", ["0.001", "0.019", "0.02"])
def test_gradient_descent_of_the_seeds(lr: str) -> None:
    """S0-38: at the limit of 0.02 the steep coordinate swings for ever, the other is 0.98^k."""
    for steps, expected in KNOWN["gd"][lr].items():
        found = RAVINE.trajectory("gradient_descent", START, int(steps), lr=float(lr))[-1]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10)


def test_gradient_descent_beyond_the_limit() -> None:
    """E0.6: 2.1 / 100 a step grows by 1.1."""
    found = RAVINE.trajectory("gradient_descent", START, 100, lr=0.021)[-1, 0]
    assert float(found) == pytest.approx(1.1**100, rel=1e-12)
    assert float(found) == pytest.approx(13780.61, abs=0.005)


def test_momentum_of_the_seeds() -> None:
    known = KNOWN["heavy_ball"]
    best = RAVINE.optimal("heavy_ball")
    for trajectory, setting in (
        (known["trajectory"], {}),
        (known["alpha=0.01,mu=0.9"], {"lr": 0.01, "momentum": 0.9}),
    ):
        for steps, expected in trajectory.items():
            found = RAVINE.trajectory("heavy_ball", START, int(steps), **setting)[-1]
            torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10)
    assert best.lr == pytest.approx(known["optimal_alpha=4/(sqrt L+sqrt mu)^2"], abs=1e-12)
    assert best.momentum == pytest.approx(known["optimal_mu=((sqrt k-1)/(sqrt k+1))^2"], abs=1e-12)
    assert best.rate == pytest.approx(known["rate=sqrt(mu)"], abs=1e-12)
    known = KNOWN["nesterov_alpha=1/L_mu=(sqrtk-1)/(sqrtk+1)"]
    for steps, expected in known["trajectory"].items():
        found = RAVINE.trajectory("nesterov", START, int(steps), lr=known["alpha"], momentum=known["mu"])[-1]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-10)


def test_terminal_velocity() -> None:
    """S3-13: along a slope that never changes, momentum goes at lr / (1 - momentum) a step."""
    slope = Quadratic([0.0], [1.0])
    path = slope.trajectory("heavy_ball", [0.0], 200, lr=0.01, momentum=0.9)
    speed = path.diff(dim=0).squeeze(-1)
    known = KNOWN["heavy_ball"]["terminal_velocity_const_grad1_alpha0.01_mu0.9"]
    assert float(speed[9]) == pytest.approx(known["after_10"], abs=1e-10)
    assert float(speed[199]) == pytest.approx(known["after_200"], abs=1e-10)
    with pytest.raises(pb.InputError, match=r"a gradient that vanishes somewhere, got a slope of 1 along"):
        _ = slope.stationary_point


def test_near_a_saddle() -> None:
    saddle, known = Quadratic([1.0, -1.0]), KNOWN["saddle_x2_minus_y2"]
    start = [1.0, 0.01]
    made: list[tuple[str, str, int, dict[str, float]]] = [
        ("gd_eta0.1_T20", "gradient_descent", 20, {"lr": 0.1}),
        ("newton_T1", "newton", 1, {}),
        ("damped_newton_alpha2_T20", "damped_newton", 20, {"damping": 2.0}),
        ("saddle_free_newton_T1", "saddle_free_newton", 1, {}),
        ("truncated(neg dirs dropped)_T20", "truncated_newton", 20, {}),
    ]
    made.append((next(key for key in known if "alpha0.5" in key), "damped_newton", 20, {"damping": 0.5}))
    for name, method, steps, setting in made:
        found = saddle.trajectory(method, start, steps, **setting)[-1]  # type: ignore[arg-type]
        torch.testing.assert_close(found, torch.tensor(known[name], dtype=F64), rtol=1e-12, atol=1e-10)
    held = Quadratic([1.0, -1.0]).trajectory("gradient_descent", [1.0, 0.0], 10_000, lr=0.1)[-1]
    assert held.tolist() == [pytest.approx(0.0, abs=1e-12), 0.0]  # S2-17: on the stable manifold, for ever
    grown = saddle.trajectory("gradient_descent", [0.0, 1e-3], 30, lr=0.1)[:, 1]
    torch.testing.assert_close(grown, 1e-3 * 1.1 ** torch.arange(31, dtype=F64), rtol=1e-12, atol=0)
    with pytest.raises(pb.InputError, match=r"no negative curvature, got an eigenvalue -1. Ask for"):
        _ = saddle.minimiser
    assert saddle.stationary_point.tolist() == [0.0, 0.0]


def test_the_shift_moves_the_minimiser_and_no_rate() -> None:
    """S3-11."""
    A, b, x0 = drawn(4, 3)
    problem, centred = Quadratic(A, b, 2.5), Quadratic(A)
    torch.testing.assert_close(problem.minimiser, -torch.linalg.solve(A, b))
    assert torch.equal(problem.rates("gradient_descent", lr=0.3), centred.rates("gradient_descent", lr=0.3))
    points = torch.stack([x0, b])
    by_hand = torch.stack([x @ A @ x / 2 + b @ x + 2.5 for x in points])
    torch.testing.assert_close(problem.loss(points), by_hand)
    torch.testing.assert_close(problem.gradient(points), points @ A + b)
    torch.testing.assert_close(problem.excess(points), by_hand - problem.loss(problem.minimiser))
    assert float(problem.loss(torch.zeros(4))) == 2.5


def test_zigzag() -> None:
    """S3-09: between 1 and 2 over the curvature the sharp coordinate changes its sign at each step, and shrinks."""
    path = RAVINE.trajectory("gradient_descent", START, 40, lr=0.018)
    assert (path[1:, 0] * path[:-1, 0] < 0).all()
    assert (path[1:, 1] * path[:-1, 1] > 0).all()
    assert (path[1:].abs() < path[:-1].abs()).all()


def test_worked_example() -> None:
    """S0-41: factors of a step at the limit."""
    factors = RAVINE.trajectory("gradient_descent", START, 1, lr=0.02)[1]
    assert factors.tolist() == [-1.0, 0.98]


@pytest.mark.parametrize(
    ("times_limit", "expected"),
    [(0.5, "monotone"), (0.51, "oscillating"), (0.999, "oscillating"), (1.0, "critical"), (1.001, "divergent")],
)
@pytest.mark.parametrize("curvature", [100.0, 3e-5])
def test_regimes(times_limit: float, expected: str, curvature: float) -> None:
    problem = Quadratic([curvature, 0.0, -curvature])
    limit = problem.stability_limit()
    assert problem.regimes(lr=times_limit * limit) == (expected, "still", "escaping")


@pytest.mark.parametrize("method", ["heavy_ball", "nesterov"])
@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_limits_separate(method: str, momentum: float) -> None:
    """Just inside the limit the distance shrinks in the end, just outside it grows."""
    problem = Quadratic([7.0, 2.0])
    limit = problem.stability_limit(momentum, method)  # type: ignore[arg-type]
    for factor, inside in ((0.99, True), (1.01, False)):
        lr = factor * limit
        path = problem.trajectory(method, START, 4000, lr=lr, momentum=momentum).norm(dim=-1)  # type: ignore[arg-type]
        assert bool(path[-1] < path[2000]) is inside
        rates = problem.rates(method, lr=lr, momentum=momentum)  # type: ignore[arg-type]
        assert bool((rates < 1).all()) is inside
        assert ("divergent" not in problem.regimes(lr, momentum, method)) is inside  # type: ignore[arg-type]
    assert problem.stability_limit() == pytest.approx(2 / 7)


@pytest.mark.parametrize("method", ["gradient_descent", "heavy_ball", "nesterov"])
def test_the_optimum_is_one(method: str) -> None:
    """No neighbour of the best settings has a faster slowest direction, and its rate is the one that is told."""
    problem = Quadratic([9.0, 4.0, 0.5])
    best = problem.optimal(method)  # type: ignore[arg-type]

    def slowest(lr: float, momentum: float) -> float:
        kept = {} if method == "gradient_descent" else {"momentum": momentum}
        return float(problem.rates(method, lr=lr, **kept).max())  # type: ignore[arg-type]

    assert slowest(best.lr, best.momentum) == pytest.approx(best.rate, abs=1e-7)  # a double root: half of the digits
    for a, b in itertools.product((0.97, 1.0, 1.03), repeat=2):
        momentum = min(b * best.momentum, 0.999)
        assert slowest(a * best.lr, momentum) >= best.rate - 1e-7
    assert Quadratic([100.0, 1.0]).optimal("gradient_descent") == pytest.approx((2 / 101, 0.0, 99 / 101))
    assert problem.optimal("newton") == (1.0, 0.0, 0.0)


def test_momentum_beats_descent() -> None:
    """S0-42: 0.8182 against 0.9802 a step, and 444 steps of the best descent to a loss of 1e-6 (S0-32)."""
    assert RAVINE.optimal("heavy_ball").rate == pytest.approx(0.8182, abs=5e-5)
    assert RAVINE.optimal("gradient_descent").rate == pytest.approx(0.9802, abs=5e-5)
    losses = RAVINE.loss(RAVINE.trajectory("gradient_descent", START, 500))
    assert int((losses < 1e-6).nonzero()[0]) in (443, 444, 445)


def test_the_natural_gradient_in_a_metric() -> None:
    """S1-41, S1-83: in the identity it is descent, in A it is Newton; in any it does not depend on the coordinates."""
    A, b, x0 = drawn(3, 5)
    problem, eye = Quadratic(A, b), torch.eye(3, dtype=F64)
    same = problem.trajectory("natural_gradient", x0, 5, lr=0.3, metric=eye)
    torch.testing.assert_close(same, problem.trajectory("gradient_descent", x0, 5, lr=0.3))
    torch.testing.assert_close(
        problem.trajectory("natural_gradient", x0, 5, lr=0.3, metric=A), problem.trajectory("newton", x0, 5, lr=0.3)
    )
    F, C = drawn(3, 8)[0], drawn(3, 9)[0]
    path = problem.trajectory("natural_gradient", x0, 5, lr=0.3, metric=F, damping=0.1)
    x = x0
    for step in range(6):
        torch.testing.assert_close(path[step], x)
        x = x - 0.3 * torch.linalg.solve(F + 0.1 * eye, A @ x + b)
    inverse = torch.linalg.inv(C)  # x = C u
    moved = Quadratic(C.T @ A @ C, C.T @ b).trajectory("natural_gradient", inverse @ x0, 5, lr=0.3, metric=C.T @ F @ C)
    torch.testing.assert_close(moved @ C.T, problem.trajectory("natural_gradient", x0, 5, lr=0.3, metric=F))


def test_what_a_matrix_may_be() -> None:
    A, b, x0 = drawn(3, 1)
    expected = Quadratic(A, b).trajectory("gradient_descent", x0, 4, lr=0.5)
    single = Quadratic(A.float(), b).trajectory("gradient_descent", x0, 4, lr=0.5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Quadratic(A.numpy(), b.numpy()).trajectory("gradient_descent", x0, 4, lr=0.5), expected)
    model = torch.nn.Linear(3, 1, bias=False).double()
    x = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(6, 1, dtype=F64)
    H = pb.Hessian(model, torch.nn.MSELoss(), (x, y))
    torch.testing.assert_close(
        Quadratic(H).trajectory("gradient_descent", x0, 4, lr=0.1),
        Quadratic(2 * x.T @ x / 6).trajectory("gradient_descent", x0, 4, lr=0.1),
    )
    batch = torch.stack([x0, b])
    found = Quadratic(A, b).trajectory("gradient_descent", batch, 4, lr=0.5)
    torch.testing.assert_close(found[0], expected)
    assert Quadratic([2, 1]).eigenvalues.dtype == F64
    assert torch.equal(Quadratic(A.to_sparse(), b).eigenvalues, Quadratic(A, b).eigenvalues)
    assert Quadratic([3.0, -12.0, 0.0]).condition_number == 4.0
    assert math.isnan(Quadratic([0.0]).condition_number)
    assert Quadratic([-1.0]).stability_limit() == math.inf
    assert repr(Quadratic([3.0, 1.0])) == "Quadratic(2 dimensions, eigenvalues 1 to 3)"


def test_what_grows_beyond_all_numbers_is_inf() -> None:
    A = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)  # eigenvectors (1, 1) and (1, -1)
    path = Quadratic(A).trajectory("gradient_descent", [1.0, 0.0], 5000, lr=1.5)
    assert not path.isnan().any()
    assert path[-1].isinf().all()
    held = Quadratic([100.0, 1.0]).trajectory("gradient_descent", [0.0, 1.0], 5000, lr=1.5)
    assert (held[:, 0] == 0).all()


def test_eigenvalues_that_are_rounding_are_zero() -> None:
    x = torch.randn(3, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    problem = Quadratic(x.T @ x)
    assert int((problem.eigenvalues == 0).sum()) == 3
    path = problem.trajectory("gradient_descent", torch.ones(6), 3, lr=0.9 * problem.stability_limit())
    null = problem.eigenvectors[:, problem.eigenvalues == 0]
    torch.testing.assert_close(path @ null, (path[0] @ null).expand(4, 3))  # E3.3: they never move


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Quadratic([[1.0, 2.0], [0.0, 1.0]]),
            r"Quadratic: expected a symmetric matrix, got entries that differ from their mirror image by 2\. Pass",
        ),
        (lambda: Quadratic([[1.0, 2.0]]), r"expected A \(d, d\), or eigenvalues \(d,\), got \(1, 2\)\. Pass a square"),
        (lambda: Quadratic([]), r"expected A \(d, d\), or eigenvalues \(d,\), got \(0,\)"),
        (lambda: Quadratic([1.0, math.nan]), r"finite numbers in `A`, got NaN or Inf"),
        (lambda: Quadratic([1.0, 1.0], [1.0]), r"`b` with 2 coordinates last, got shape \(1,\)"),
        (lambda: RAVINE.trajectory("gradient_descent", [1.0], 3), r"`x0` with 2 coordinates last, got shape \(1,\)"),
        (lambda: RAVINE.trajectory("gradient_descent", [math.inf, 1.0], 3), r"finite numbers in `x0`"),
        (lambda: RAVINE.trajectory("gradient_descent", START, -1), r"`steps` at least 0, got -1"),
        (lambda: RAVINE.trajectory("gradient_descent", START, 3, lr=0.0), r"`lr` above 0, got 0\.0"),
        (
            lambda: RAVINE.trajectory("gradient_descent", START, 3, momentum=0.9),
            r'no momentum with "gradient_descent", got 0\.9',
        ),
        (lambda: RAVINE.trajectory("heavy_ball", START, 3, lr=0.1), r"`lr` and `momentum`, or neither, got only one"),
        (lambda: RAVINE.trajectory("heavy_ball", START, 3, lr=0.1, momentum=1.0), r"`momentum` in \[0, 1\), got 1\.0"),
        (
            lambda: RAVINE.trajectory("newton", START, 3, damping=0.1),
            r'no damping with "newton", got 0\.1. Use one of damped',
        ),
        (lambda: RAVINE.trajectory("damped_newton", START, 3, damping=-0.1), r"`damping` of at least 0, got -0\.1"),
        (lambda: RAVINE.trajectory("adam", START, 3), r"`method` to be one of 'gradient_descent'"),  # type: ignore[arg-type]
        (lambda: RAVINE.trajectory("newton", START, 3, metric=[[1.0, 0.0], [0.0, 1.0]]), r'no metric with "newton"'),
        (lambda: RAVINE.trajectory("natural_gradient", START, 3, metric=[[1.0]]), r"a metric \(2, 2\), got \(1, 1\)"),
        (
            lambda: RAVINE.trajectory("natural_gradient", START, 3, metric=[[1.0, 0.0], [0.0, -1.0]]),
            r"a metric whose eigenvalues are positive",
        ),
        (
            lambda: Quadratic([1.0, 0.0]).trajectory("newton", START, 3),
            r"curvatures a step can be divided by, got a direction of curvature 0",
        ),
        (
            lambda: Quadratic([1.0, -0.5]).trajectory("damped_newton", START, 3, damping=0.5),
            r"got a direction of curvature -0\.5, damping 0\.5",
        ),
        (lambda: Quadratic([1.0, -1.0]).optimal("heavy_ball"), r"positive curvature in all directions, got -1"),
        (
            lambda: RAVINE.stability_limit(method="newton"),
            r"`method` to be one of 'gradient_descent', 'heavy_ball', 'nesterov'",
        ),
        (lambda: RAVINE.stability_limit(momentum=-0.1), r"`momentum` in \[0, 1\), got -0\.1"),
        (lambda: Quadratic("abc"), r"numbers in `A`, got str without a shape or without numbers"),
        (lambda: Quadratic(None), r"numbers in `A`, got NoneType"),
        (lambda: Quadratic([[1.0, 2.0], [3.0]]), r"numbers in `A`, got list without a shape"),
        (lambda: Quadratic(1j * torch.eye(2)), r"real numbers in `A`, got torch\.complex64\. Pass the real part"),
        (lambda: Quadratic([1.0], c=math.nan), r"a finite number `c`, got nan"),
        (lambda: Quadratic([1.0], c="1"), r"a finite number `c`, got '1'"),  # type: ignore[arg-type]
        (lambda: Quadratic([1.0, 2.0], [[1.0, 2.0]]), r"`b` \(2,\), got shape \(1, 2\)"),
        (lambda: RAVINE.trajectory("gradient_descent", START, 3, lr=math.inf), r"a finite `lr`, got inf"),
        (lambda: RAVINE.trajectory("gradient_descent", START, 3, lr="0.1"), r"`lr` above 0, got '0\.1'"),  # type: ignore[arg-type]
        (lambda: RAVINE.trajectory("gradient_descent", START, 3, lr=torch.ones(2)), r"`lr` above 0, got tensor"),  # type: ignore[arg-type]
        (lambda: RAVINE.trajectory("gradient_descent", START, 2.0), r"`steps` at least 0, got 2\.0"),  # type: ignore[arg-type]
        (lambda: RAVINE.trajectory("gradient_descent", [1j, 1.0], 3), r"real numbers in `x0`, got torch.complex128"),
        (lambda: RAVINE.trajectory("gradient_descent", None, 3), r"numbers in `x0`, got NoneType"),
        (lambda: RAVINE.trajectory("damped_newton", START, 3, damping=math.inf), r"`damping` of at least 0, got inf"),
        (lambda: RAVINE.regimes("fast"), r"`lr` above 0, got 'fast'"),  # type: ignore[arg-type]
        (lambda: RAVINE.loss("here"), r"numbers in `x`, got str"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
