"""Gradient descent on quadratics in closed form: what eigenvalues and solves of an operator say about training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from tests.compare import assert_same
from tests.spectral.matrices import planted

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "taylor_spectral.json").read_text())["quadratics"]


def descend(op: Tensor, b: Tensor, w: Tensor, step: float, count: int) -> Tensor:
    """Steps on 1/2 w^T A w - b^T w."""
    for _ in range(count):
        w = w - step * (op @ w - b)
    return w


@given(st.integers(2, 15), st.integers(0, 20), st.floats(0.01, 0.2))
def test_closed_form(n: int, seed: int, step: float) -> None:
    """S2-15: w_k = w* + (I - a H)^k (w_0 - w*), each eigencoordinate by itself, against 100 iterated steps."""
    matrix = planted(torch.linspace(0.1, 9, n), seed)
    generator = torch.Generator().manual_seed(seed)
    b, start = torch.randn(2, n, generator=generator, dtype=torch.float64)
    optimum = pb.solve(matrix, b, tol=1e-13).x
    pairs = pb.eigenvalues(matrix, n, tol=1e-12)
    coordinates = pairs.vectors.T @ (start - optimum)
    closed = optimum + pairs.vectors @ ((1 - step * pairs.values) ** 100 * coordinates)
    assert_same(closed, descend(matrix, b, start, step, 100), 1e-10, scale=float(start.norm() + optimum.norm()))


@pytest.mark.parametrize("step", sorted(KNOWN["gd"]))
def test_known_trajectories(step: str) -> None:
    """S2-15: diag(100, 1) from (1, 1)."""
    matrix, start = torch.diag(torch.tensor(KNOWN["A"])).double(), torch.tensor(KNOWN["theta0"]).double()
    for count, expected in KNOWN["gd"][step].items():
        found = descend(matrix, 0 * start, start, float(step), int(count))
        assert_same(found, torch.tensor(expected, dtype=torch.float64), 1e-9, scale=1.0)
        closed = (1 - float(step) * matrix.diagonal()) ** int(count)
        assert_same(closed, found, 1e-9, scale=1.0)


def test_thresholds() -> None:
    """S2-16: descent converges if and only if 0 < a h_i < 2 for all i; monotone to 1 / h, oscillating to 2 / h; fastest
    at 2 / (h_max + h_min), where the factor is (kappa - 1) / (kappa + 1)."""
    matrix = planted(torch.linspace(1, 100, 12))
    ends = pb.eigenvalues(matrix, 1, "both", tol=1e-10)
    top, bottom = (float(v) for v in ends.values)
    assert (top, bottom) == (pytest.approx(100), pytest.approx(1))
    bound = 2 / top
    assert bound == pytest.approx(0.02)
    start = torch.ones(12, dtype=torch.float64)
    for step, grows in ((0.99 * bound, False), (1.01 * bound, True)):
        assert (float(descend(matrix, 0 * start, start, step, 2000).norm()) > float(start.norm())) == grows
    best = 2 / (top + bottom)
    assert best == pytest.approx(KNOWN["gd_facts"]["2/(alpha+beta)"])
    rate = (top / bottom - 1) / (top / bottom + 1)
    assert rate == pytest.approx(KNOWN["gd_facts"]["rate"])
    for direction in (ends.vectors[:, 0], ends.vectors[:, 1]):
        moved = descend(matrix, 0 * start, direction, best, 1)
        assert float(moved.norm()) == pytest.approx(rate)
    for share, sign in ((0.9, 1), (1.1, -1), (1.9, -1)):  # of 1 / h_max
        moved = descend(matrix, 0 * start, ends.vectors[:, 0], share / top, 1)
        assert float(moved @ ends.vectors[:, 0]) * sign > 0
        assert float(moved.norm()) == pytest.approx(abs(1 - share))


def test_threshold_of_a_network() -> None:
    """S2-16: near a minimum of a small network the Hessian's largest eigenvalue tells which steps stay."""
    x = torch.randn(30, 2, dtype=torch.float64)
    model, y = nn.Linear(2, 1, bias=False).double(), x @ torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    hessian = pb.Hessian(model, nn.MSELoss(), (x, y))
    top = float(pb.eigenvalues(hessian, tol=1e-8).values[0])
    for factor, stays in ((1.9, True), (2.1, False)):
        w = torch.tensor([1.0, 2.0], dtype=torch.float64) + 1e-3
        for _ in range(200):
            w = w - factor / top * (hessian @ (w - torch.tensor([1.0, 2.0], dtype=torch.float64)))
        assert (float((w - torch.tensor([1.0, 2.0], dtype=torch.float64)).norm()) < 1e-3) == stays


def test_escape_from_a_saddle() -> None:
    """S2-17: along h = -1 with a = 0.1 the distance grows as 1.1^k; from exactly 0 it never does; a perturbation of any
    size escapes; Newton jumps onto the saddle, and damping escapes only above -h."""
    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert pb.classify_stationary_point(matrix, torch.zeros(2)).kind == "saddle"
    bottom = float(pb.eigenvalues(matrix, 1, "smallest").values[0])
    zero = torch.zeros(2, dtype=torch.float64)
    start = torch.tensor([1.0, 0.01], dtype=torch.float64)
    known = KNOWN["saddle_x2_minus_y2"]
    found = descend(matrix, zero, start, 0.1, 20)
    assert_same(found, torch.tensor(known["gd_eta0.1_T20"], dtype=torch.float64), 1e-9)
    assert float(found[1] / start[1]) == pytest.approx(abs(1 - 0.1 * bottom) ** 20)
    stuck = descend(matrix, zero, torch.tensor([1.0, 0.0], dtype=torch.float64), 0.1, 500)
    assert float(stuck[1]) == 0
    assert abs(float(stuck[0])) < 1e-12
    escaped = descend(matrix, zero, torch.tensor([1.0, 1e-12], dtype=torch.float64), 0.1, 400)
    assert float(escaped[1]) > 1
    with pytest.raises(pb.InputError, match="expected a positive definite operator, got curvature"):
        pb.solve(matrix, matrix @ torch.tensor([0.0, 1.0], dtype=torch.float64))
    w = start.clone()
    for _ in range(20):
        w = w - pb.solve(matrix, matrix @ w, damping=2.0, tol=1e-14).x
    assert_same(w, torch.tensor(known["damped_newton_alpha2_T20"], dtype=torch.float64), 1e-9)
