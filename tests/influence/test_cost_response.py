"""Responses of any cost(w, theta), and its mixed second derivative."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback import reference
from tests.compare import assert_same

VALUES = json.loads((Path(__file__).parents[1] / "data" / "influence.json").read_text())
FIGURE_4 = VALUES["fig4_example_g'(w)=8(w+1)(w-1)(w-2)"]


def quartic(w: Tensor, theta: Tensor) -> Tensor:
    """g(w) + theta w with g'(w) = 8 (w + 1) (w - 1) (w - 2)."""
    return (2 * w**4 - 16 * w**3 / 3 - 4 * w**2 + 16 * w + theta * w).sum()


def test_figure_4() -> None:
    """S2-39: dw/dlam = -1/48 and -1/24 at the minima -1 and 2; at lam = 3 they are -1.059513 and 1.843700."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    minima = {"left": -1.0, "right": 2.0}
    for side, w in minima.items():
        found = pb.cost_response(quartic, torch.tensor([w], dtype=torch.float64), zero, one, tol=1e-14)
        assert_same(found.change, torch.tensor([FIGURE_4["predicted_dw/dlam_at_0"][side]], dtype=torch.float64), 1e-13)
        at_three = FIGURE_4["rows"][2]
        moved = reference.minimise(lambda v: quartic(v, 3 * one), torch.tensor([w], dtype=torch.float64))
        assert_same(moved, torch.tensor([at_three[f"{side}_min"]], dtype=torch.float64), 1e-12)
        bent = torch.func.jacrev(torch.func.jacrev(quartic))(moved, 3 * one)[0, 0]
        assert_same(bent, torch.tensor(at_three[f"curv_{side}"], dtype=torch.float64), 1e-12)
        assert found.change < 0  # both minima move to the left
        assert moved < w


def coupled(w: Tensor, theta: Tensor) -> Tensor:
    """A cost whose mixed derivative is dense."""
    sums = torch.tanh(w).sum() * theta.square().sum() + (w[:1] * theta).sum()
    return sums + torch.sin(w.sum() * theta.sum()) + w.square().sum()


@given(p=st.integers(1, 6), m=st.integers(1, 6))
def test_mixed_second_vp(p: int, m: int) -> None:
    """S2-40: equal to the dense mixed derivative and its transpose, also in named parts."""
    torch.manual_seed(10 * p + m)
    w, theta, r, u = (torch.randn(size, dtype=torch.float64) for size in (p, m, m, p))
    dense = reference.dense_mixed_derivative(coupled, w, theta)
    assert_same(pb.mixed_second_vp(coupled, w, theta, r), dense @ r, 1e-12)
    assert_same(pb.mixed_second_vp(coupled, w, theta, u, transpose=True), dense.T @ u, 1e-12)

    def named(w: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        return coupled(w["a"], theta["t"]) * theta["scale"]

    parts = {"t": theta, "scale": 2.0}
    assert_same(pb.mixed_second_vp(named, {"a": w}, parts, {"t": r})["a"], 2 * dense @ r, 1e-12)
    slope = torch.func.grad(coupled)(w, theta)
    assert_same(pb.mixed_second_vp(named, {"a": w}, parts, {"scale": 1.0})["a"], slope, 1e-12)
    back = pb.mixed_second_vp(named, {"a": w}, parts, {"a": u}, transpose=True)
    assert_same(back["t"], 2 * dense.T @ u, 1e-12)
    assert_same(back["scale"], slope @ u, 1e-12)


def test_response_equals_the_dense_one_and_retraining() -> None:
    """Any named hyper-parameter: here the shape of a penalty and its factor."""
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)

    def cost(w: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        penalty = (w["w"].square() + theta["corner"] ** 2).sqrt().sum()
        return (x @ w["w"] + w["b"] - y).square().mean() / 2 + theta["decay"] * penalty + 1e-2 * w["b"].square().sum()

    def flat(v: Tensor, decay: Tensor) -> Tensor:
        return cost({"w": v[:3], "b": v[3]}, {"decay": decay, "corner": torch.tensor(0.3)})

    at = torch.tensor(0.1, dtype=torch.float64)
    w = reference.minimise(lambda v: flat(v, at), torch.zeros(4, dtype=torch.float64))
    theta = {"decay": 0.1, "corner": 0.3}
    found = pb.cost_response(cost, {"w": w[:3], "b": w[3]}, theta, {"decay": 1.0}, tol=1e-12)
    change = torch.cat([found.change["w"], found.change["b"].reshape(1)])
    assert found.solution.converged
    assert_same(change, reference.dense_response(flat, w, at)[:, 0], 1e-8)
    step = 1e-4
    moved = [reference.minimise(lambda v, s=s: flat(v, at + s), w) for s in (step, -step)]
    assert_same(change, (moved[0] - moved[1]) / (2 * step), 1e-6)


def test_a_matrix_of_the_users_own_and_damping() -> None:
    w, theta = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    cost = lambda w, theta: (w * theta).sum()  # no curvature of its own
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    response = pb.cost_response(cost, w, theta, torch.ones(3), matrix=A, damping=1.0, tol=1e-12)
    assert isinstance(response, pb.CostResponse)
    found = response.change
    assert_same(found, -1 / torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64), 1e-12)


def test_errors() -> None:
    w, theta = torch.ones(2), torch.ones(2)
    with pytest.raises(pb.InputError, match=r"mixed_second_vp: expected a scalar from `cost\(w, theta\)`, got shape"):
        pb.mixed_second_vp(lambda w, theta: w * theta, w, theta, theta)
    with pytest.raises(pb.InputError, match=r"a scalar from `cost\(w, theta\)`, got float. Sum or average it"):
        pb.mixed_second_vp(lambda w, theta: 1.0, w, theta, theta)
    product = lambda w, theta: (w * theta).sum()
    with pytest.raises(pb.InputError, match=r"expected a direction of shape \(2,\), got \(3,\). Reshape it"):
        pb.mixed_second_vp(product, w, theta, torch.ones(3))
    with pytest.raises(pb.InputError, match="expected a direction of the kind of what it changes, got dict"):
        pb.mixed_second_vp(product, w, theta, {"theta": theta})
    named = lambda w, theta: (w * theta["a"]).sum()
    with pytest.raises(pb.InputError, match="expected names among a, k, got 'b'"):
        pb.mixed_second_vp(named, w, {"a": theta, "k": 3}, {"b": theta})
    with pytest.raises(pb.InputError, match="expected real numbers in `k`, got torch.int64"):
        pb.mixed_second_vp(named, w, {"a": theta, "k": torch.tensor(3)}, {"k": 1})
    saddle = lambda w, theta: (theta * w).sum() - w.square().sum()
    with pytest.raises(pb.InputError, match="solve: expected a positive definite operator, got curvature"):
        pb.cost_response(saddle, w, theta, theta)
