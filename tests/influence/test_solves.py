"""How the systems are solved: every route against dense algebra, what is said of the residuals against the truth."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import _progress, reference
from pullback.influence import dual, held_rows, query, system
from pullback.influence.response import Perturbation
from pullback.operators import as_operator
from tests.compare import assert_same
from tests.influence.test_response import LOSSES, dense_matrix, network

ROUTES: list[tuple[str, int]] = [("cg", 2**31), ("cg", 0), ("dual", 2**31), ("dual", 0), ("auto", 2**31), ("auto", 0)]


@pytest.fixture
def held_bytes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what may be held."""

    def change(count: int) -> None:
        for module in (held_rows, dual, query, system):
            monkeypatch.setattr(module, "HELD_BYTES", count)

    return change


def damped(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor, matrix: str, damping: float) -> Tensor:
    A = dense_matrix(model, loss_fn, x, y, matrix)
    return A + damping * torch.eye(len(A), dtype=A.dtype)


@limits(max_examples=8)
@given(
    n=st.integers(1, 6),
    width=st.integers(1, 3),
    outputs=st.integers(1, 4),
    loss=st.sampled_from(sorted(LOSSES)),
    matrix=st.sampled_from(["gauss_newton", "empirical_fisher"]),
    batches=st.booleans(),
    damping=st.floats(1e-3, 3.0),
    route=st.sampled_from(ROUTES),
)
def test_every_route_equals_dense_algebra(
    n: int, width: int, outputs: int, loss: str, matrix: Any, batches: bool, damping: float, route: tuple[Any, int]
) -> None:
    """Held or by passes, by factors or by iterations, more rows than parameters or fewer, one batch or two."""
    model, loss_fn, x, y = network(n, 2, width, outputs, loss, seed=10 * n + width)
    data: Any = [(x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])] if batches and n > 1 else (x, y)
    A = damped(model, loss_fn, x, y, matrix, damping)
    G = reference.gradient_matrix(model, loss_fn, x, y)
    own = (G * torch.linalg.solve(A, G.T).T).sum(1) / n
    others = torch.rand_like(y) if y.is_floating_point() else (y + 1) % max(outputs, 1)
    H = reference.gradient_matrix(model, loss_fn, x, others)
    across = {"weights": -G @ torch.linalg.solve(A, G.T) / n, "labels": -G @ torch.linalg.solve(A, (H - G).T) / n}
    method, held = route
    with pytest.MonkeyPatch.context() as patch:
        for module in (held_rows, dual, query, system):
            patch.setattr(module, "HELD_BYTES", held)
        settings: dict[str, Any] = {"damping": damping, "matrix": matrix, "method": method, "tol": 1e-10}
        settings |= {"max_iters": 500, "block": 2}
        found = pb.self_influence(model, loss_fn, data, **settings)
        assert_same(found.values, own, 1e-7)
        assert found.converged
        some = pb.self_influence(model, loss_fn, data, points=(x[:1], y[:1]), **settings)
        assert_same(some.values, own[:1], 1e-7, scale=float(own.max()))
        for wrt, expected in across.items():
            extra: Any = {}
            if wrt == "labels":
                extra = {"labels": [others[: n // 2], others[n // 2 :]] if batches and n > 1 else others}
            answer = pb.query_influence(model, loss_fn, data, x, y, wrt=wrt, **extra, **settings)  # type: ignore[arg-type]
            assert_same(answer.values, expected, 1e-7, scale=float(across["weights"].abs().max()) + 1e-12)


def test_what_is_factored_is_the_smaller_matrix(held_bytes: Any) -> None:
    """Factors where they fit and pay, with a loss convex in the outputs; else iterations."""
    model, loss_fn, x, y = network(6, 2, 3, 2, "classes", seed=0)  # 12 rows, 17 parameters
    few, few_y = x[:2], y[:2]
    settings: dict[str, Any] = {"damping": 0.1, "tol": 1e-8}
    assert pb.self_influence(model, loss_fn, (x, y), **settings).iterations == 0
    assert pb.self_influence(model, loss_fn, (x, y), method="cg", **settings).iterations > 0
    assert pb.self_influence(model, loss_fn, (x, y), matrix="hessian", damping=2.0).iterations > 0
    assert pb.self_influence(model, loss_fn, (x, y), damping=0.1, tol=0, max_iters=3).iterations == 3
    falling = lambda z, t: -(z - t).square().sum(1)
    targets = torch.zeros(6, 2, dtype=torch.float64)
    assert pb.self_influence(model, falling, (x, targets), damping=200.0).iterations > 0
    held_bytes(12 * 12 * 8)
    assert pb.query_influence(model, loss_fn, (x, y), few, few_y, **settings).iterations == 0
    held_bytes(12 * 12 * 8 - 1)
    assert pb.query_influence(model, loss_fn, (x, y), few, few_y, **settings).iterations > 0
    asked = system.settings_of("here", "gauss_newton", "dual", 0.1, 1e-8, None, None)
    held_bytes(2**31)
    wide = system.DampedSystem(model, loss_fn, (x, y), asked, "here")
    assert isinstance(wide.for_columns(6).inverse, pb.DampedInverse)
    twice = (x.repeat(2, 1), y.repeat(2))
    tall = system.DampedSystem(*network(12, 2, 3, 2, "classes", seed=0)[:2], twice, asked, "here")
    assert isinstance(tall.for_columns(1).inverse, dual.Factored)


@pytest.mark.parametrize(("size", "columns"), [(200, 1), (201, 2)])
def test_when_factors_pay(size: int, columns: int) -> None:
    """A column of iterations is worth about 200 rows of what is factored: just inside, and just outside."""
    model, x = nn.Linear(1, 1).double(), torch.zeros(1, 1, dtype=torch.float64)
    view = pb.ModelView.of(model)
    view.parameters["weight"] = torch.zeros(size, size)  # only its size counts
    asked = system.settings_of("here", "empirical_fisher", "auto", 0.1, 1e-8, None, None)
    pays = [system._prefers_factors(view, nn.MSELoss(), (x, x), asked, size, k) for k in (columns - 1, columns)]
    assert pays == [False, True]


@pytest.mark.parametrize(
    ("dtype", "n", "width", "matrix"),
    [
        pytest.param(dtype, *shape, matrix, marks=() if (first + second + third) % 2 == 0 else pytest.mark.slow)
        for first, dtype in enumerate((torch.float64, torch.float32))
        for second, shape in enumerate(((4, 6), (30, 2)))
        for third, matrix in enumerate(("gauss_newton", "empirical_fisher"))
    ],
)
def test_residuals_of_factors_are_the_true_ones(dtype: torch.dtype, n: int, width: int, matrix: Any) -> None:
    """|b - (A + damping I) x| / |b| made densely in float64: equal up to rounding, and the flag says which side."""
    model, loss_fn, x, y = network(n, 2, width, 3, "classes", seed=4)
    cast, eps = copy.deepcopy(model).to(dtype), torch.finfo(dtype).eps
    G = reference.gradient_matrix(model, loss_fn, x, y)
    r = torch.randn(n, dtype=torch.float64)
    b = -G.T @ r / n
    seen = []
    for damping in (0.1, 10 * eps, eps / 2):
        A = damped(model, loss_fn, x, y, matrix, damping)
        settings: dict[str, Any] = {"damping": damping, "method": "dual", "matrix": matrix, "tol": 10 * eps}
        found = pb.response(cast, loss_fn, (x.to(dtype), y), r, wrt="weights", **settings)
        change = found.change.double()
        true = float((b - A @ change).norm() / b.norm())
        rounding = 20 * eps * (1 + float(A.norm() * change.norm() / b.norm()))  # of either product with A
        assert abs(found.solution.residual - true) <= rounding
        assert found.solution.converged == (found.solution.residual <= 10 * eps)
        seen.append((found.solution.converged, true, rounding))
        whole = pb.self_influence(cast, loss_fn, (x.to(dtype), y), **settings)
        assert whole.converged == (whole.residual <= 10 * eps)
        if matrix == "gauss_newton":
            del settings["matrix"]
            left = pb.leave_one_out(cast, loss_fn, (x.to(dtype), y), estimate="first_order", **settings)
            assert left.changes is not None
            errors = (G.T / n - A @ left.changes.double()).norm(dim=0) / (G / n).norm(dim=1)
            sizes = 1 + A.norm() * left.changes.double().norm(dim=0) / (G / n).norm(dim=1)
            assert bool((errors <= left.residual + 20 * eps * sizes).all())
            assert left.converged == (left.residual <= 10 * eps)
    assert seen[0][0]
    assert not seen[-1][0]
    assert seen[0][2] < 1e4 * eps  # where it converges the residual is known to rounding


@pytest.mark.parametrize(("n", "method"), [(4, "dual"), (30, "dual"), (4, "cg"), (30, "cg")])
@pytest.mark.parametrize("call", ["self", "points", "query", "leave_one_out", "left_out_points"])
def test_wrong_numbers_in_what_is_held_are_seen_by_every_call(
    n: int, method: Any, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, matrix or Gram matrix off by one percent: iterations converge on them, the network says they did not."""
    model, loss_fn, x, y = network(n, 2, 6 if n == 4 else 2, 3, "classes", seed=4)
    for name in ("held_rows", "held_matrix"):
        made = getattr(held_rows, name)
        monkeypatch.setattr(system, name, lambda *a, made=made: spoiled(made(*a)))
        monkeypatch.setattr(dual, name, lambda *a, made=made: spoiled(made(*a)), raising=False)
    kernel = dual.tangent_kernel

    def wrong(*args: Any, **options: Any) -> Any:
        found = kernel(*args, **options)
        found._matrix.mul_(1.01)
        return found

    monkeypatch.setattr(dual, "tangent_kernel", wrong)
    settings: dict[str, Any] = {"damping": 0.1, "method": method, "tol": 1e-6}
    part = (x[:2], y[:2])
    if call == "self":
        found: Any = pb.self_influence(model, loss_fn, (x, y), **settings)
    elif call == "points":
        found = pb.self_influence(model, loss_fn, (x, y), points=part, **settings)
    elif call == "query":
        found = pb.query_influence(model, loss_fn, (x, y), x, y, **settings)
    else:
        found = pb.leave_one_out(model, loss_fn, (x, y), points=part if "points" in call else None, **settings)
    if call == "points" and method == "cg":
        assert found.converged  # two samples are fewer than a sample's rows: nothing was held
        return
    assert not found.converged
    assert 1e-4 < found.residual < 0.1


def spoiled(made: Any) -> Any:
    """What was held, one percent too large."""
    (made.rows if isinstance(made, held_rows.HeldCurvature) else made.matrix).mul_(1.01)
    return made


@pytest.mark.parametrize("held", [2**31, 0])
def test_the_worst_of_several_blocks_counts(held: int, held_bytes: Any) -> None:
    """I2, I3: one right-hand side is zero and needs no iteration, the others are not solved in one."""
    model, loss_fn, x, y = network(5, 2, 3, 2, "classes", seed=1)
    settings: dict[str, Any] = {"damping": 1e-3, "method": "cg", "max_iters": 1, "tol": 1e-6, "wrt": "decay"}
    A = damped(model, loss_fn, x, y, "gauss_newton", 1e-3)
    half = lambda z, t: (z - t).square().sum(1) / 2
    yq = model(x[:3]).detach()
    yq[:2] += torch.tensor([[1.0], [0.5]], dtype=torch.float64)  # the last query is fitted: its gradient is zero
    solved = torch.linalg.solve(A, reference.gradient_matrix(model, half, x[:3], yq).T)
    assert float(solved[:, 2].abs().max()) == 0
    held_bytes(held)
    for block in (1, 2, 3):
        found = pb.query_influence(model, half, (x, model(x).detach()), x[:3], yq, block=block, **settings)
        B = damped(model, half, x, model(x).detach(), "gauss_newton", 1e-3)
        g = reference.gradient_matrix(model, half, x[:3], yq).T
        steps = [(g[:, k] @ g[:, k]) / (g[:, k] @ B @ g[:, k]) * g[:, k] for k in (0, 1)]  # one step of CG
        true = [float((g[:, k] - B @ step).norm() / g[:, k].norm()) for k, step in zip((0, 1), steps, strict=True)]
        assert not found.converged
        assert abs(found.residual - max(true)) < 1e-8
        assert abs(max(true) - min(true)) > 1e-3
    alone = pb.query_influence(model, half, (x, model(x).detach()), x[2:3], yq[2:3], **settings)
    assert alone.converged
    assert alone.residual == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("matrix", ["gauss_newton", "hessian"])
@pytest.mark.parametrize(("units", "refused"), [(0.05, True), (0.5, True), (2.0, False), (100.0, False)])
def test_which_matrices_are_singular(dtype: torch.dtype, matrix: Any, units: float, refused: bool) -> None:
    """I7: a smallest eigenvalue of at most P units of rounding of the largest is zero, also where it is above."""
    P = 8
    values = torch.ones(P, dtype=dtype)
    values[3] = units * P * torch.finfo(dtype).eps
    asked = system.settings_of("here", matrix, "cg", 0.0, 1e-6, None, None)
    operator = as_operator(torch.diag(values), symmetric=True)
    if not refused:
        system._check_definite(operator, asked, P, "here")
        return
    with pytest.raises(
        pb.InputError, match=r"here: expected a positive definite matrix .* got a smallest eigenvalue of"
    ):
        system._check_definite(operator, asked, P, "here")


def test_the_inverse_belongs_to_its_weights() -> None:
    """Rows are made on first use: by then the weights must be those of the Gram matrix."""
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    inverse = pb.DampedInverse(model, loss_fn, x, y, damping=0.1)
    v = torch.ones(17, dtype=torch.float64)
    assert_same(inverse @ v, inverse @ v, 0)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(pb.InputError, match="DampedInverse: expected the weights it was made at, got others. Make ano"):
        inverse @ v
    fresh = pb.DampedInverse(model, loss_fn, x, y, damping=0.1)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(pb.InputError, match="DampedInverse: expected the weights it was made at, got others. Make ano"):
        _ = fresh.rows


@pytest.mark.parametrize("damping", [1e-3, 1e-1])
def test_residual_of_what_is_between_rows(damping: float) -> None:
    """I10: of a wrong matrix it is the size of the error, and of the right one rounding, which is not zero."""
    model, loss_fn, x, y = network(6, 2, 4, 3, "classes", seed=2)
    inverse = pb.DampedInverse(model, loss_fn, x, y, damping=damping)
    K, S = inverse.rows.to_dense() @ inverse.rows.to_dense().T, inverse.between_rows
    bend = torch.block_diag(*inverse.bend)  # type: ignore[misc]
    assert 0 < inverse.residual(S) < 1e-12
    rounding = 8 * torch.finfo(K.dtype).eps * float(K.norm() * bend.norm() / 6 * S.norm() / K.norm())
    for error in (1e-8, 1e-3, 1.0):
        wrong = S + error * torch.randn_like(S)
        true = float(((K @ bend / 6 + damping * torch.eye(18, dtype=K.dtype)) @ wrong - K).norm() / K.norm())
        assert abs(inverse.residual(wrong) - true) <= 1e-6 * true + rounding
        assert true > 1e-3 * error * damping


def test_what_may_be_held_is_counted_in_bytes(held_bytes: Any) -> None:
    """Of rows and factors in float64, 8 for a number: just as many are held, of one more nothing."""
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    P, rows, data = 17, 8, (x, y)
    settings = system.settings_of("test", "gauss_newton", "auto", 0.1, 1e-6, None, None)
    asked = system.DampedSystem(model, loss_fn, data, settings, "test")
    change = Perturbation.of("weights", None, None, "test")
    ways = [
        (8 * 4 * P, lambda: query.held_slopes(asked, change, "test") is not None),
        (8 * rows * P, lambda: pb.DampedInverse(model, loss_fn, x, y, damping=0.1).curvature is not None),
        (8 * rows * P, lambda: held_rows.fits(asked.view, 4, 2)),
        (8 * rows**2, lambda: system._prefers_factors(asked.view, loss_fn, data, settings, rows, rows)),
    ]
    for count, is_held in ways:
        for fewer in (0, 1):
            held_bytes(count - fewer)
            assert is_held() == (not fewer)


def test_long_work_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line in ten seconds from the second on, nothing where it is quick or not wanted."""
    model, loss_fn, x, y = network(8, 2, 3, 2, "classes", seed=0)
    settings: dict[str, Any] = {"damping": 0.1, "method": "cg", "block": 1}
    calls: list[Any] = [
        lambda **more: pb.self_influence(model, loss_fn, (x, y), **settings, **more),
        lambda **more: pb.query_influence(model, loss_fn, (x, y), x, y, **settings, **more),
        lambda **more: pb.leave_one_out(model, loss_fn, (x, y), **settings, **more),
    ]
    clock, step = [0.0], [0.0]

    def tick() -> float:
        clock[0] += step[0]
        return clock[0]

    monkeypatch.setattr(_progress.time, "perf_counter", tick)
    for seconds, more, some in ((0.0, {}, False), (6.0, {}, True), (6.0, {"progress": False}, False)):
        step[0] = seconds
        for call in calls:
            call(**more)
            assert bool(capsys.readouterr().err) == some
    calls[0]()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "self_influence: 2 of 8 samples, 36.0 s left"
    assert lines[-1] == "self_influence: 8 of 8 samples"
