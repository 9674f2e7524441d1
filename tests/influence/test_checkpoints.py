"""Gradient inner products along checkpoints, and the plan of an influence question."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned


def states(model: nn.Module, count: int) -> list[dict[str, Tensor]]:
    """The model's state, and others around it."""
    noise = lambda v: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v
    made = [{k: v.clone() for k, v in model.state_dict().items()}]
    return made + [{k: noise(v) for k, v in model.state_dict().items()} for _ in range(count - 1)]


def expected(case: Case, checkpoints: list[dict[str, Tensor]], rates: list[float], normalise: str) -> Tensor:
    """The sum over checkpoints, gradient by gradient."""
    model, loss_fn, x, y = build(case, 4)
    _, _, xq, yq = build(case, 2, seed=1)
    total: Any = 0
    for rate, state in zip(rates, checkpoints, strict=True):
        model.load_state_dict(state)
        Q, G = (reference.gradient_matrix(model, loss_fn, *pair) for pair in ((xq, yq), (x, y)))
        if normalise == "cosine":
            Q, G = (m / m.norm(dim=1, keepdim=True).clamp(min=1e-300) for m in (Q, G))
        total = total + rate * Q @ G.T
    return total / sum(rates) if normalise == "cosine" else total


@pytest.mark.parametrize(
    ("case", "normalise"),
    thinned([c for c in CASES if c.name in ("mlp", "conv2d", "tied", "zero_gradient")], ["dot", "cosine"]),
)
def test_sum_over_checkpoints(case: Case, normalise: Any) -> None:
    model, loss_fn, x, y = build(case, 4)
    _, _, xq, yq = build(case, 2, seed=1)
    checkpoints, rates = states(model, 3), [0.3, 0.2, 0.1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    settings: dict[str, Any] = {"normalise": normalise}
    found = pb.gradient_influence(
        model, loss_fn, (x, y), xq, yq, checkpoints=iter(checkpoints), learning_rates=rates, **settings
    )
    assert_same(found, expected(case, checkpoints, rates, normalise), 1e-9)
    now = pb.gradient_influence(model, loss_fn, (x, y), xq, yq, **settings)
    assert_same(now, expected(case, checkpoints[:1], [1.0], normalise), 1e-9)
    halves = [(x[:3], y[:3]), (x[3:], y[3:])]
    parts = pb.gradient_influence(model, loss_fn, halves, xq, yq, checkpoints=checkpoints, **settings)
    assert_same(parts, expected(case, checkpoints, [1.0] * 3, normalise), 1e-9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_step_on_a_sample_lowers_the_query_by_the_influence() -> None:
    """The sign and the size: one small step of gradient descent on one sample."""
    model, loss_fn = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), nn.CrossEntropyLoss()
    x, y, rate = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1]), 1e-6
    found = pb.gradient_influence(model, loss_fn, (x, y), x[:1], y[:1], learning_rates=[rate])
    before = loss_fn(model(x[:1]), y[:1])
    gradients = torch.autograd.grad(loss_fn(model(x[2:]), y[2:]), list(model.parameters()))
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= rate * g
    assert_same(found[0, 2], (before - loss_fn(model(x[:1]), y[:1])).detach(), 1e-4)


def test_errors() -> None:
    model, loss_fn = nn.Linear(2, 2).double(), nn.CrossEntropyLoss()
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    data, state = (x, y), dict(model.state_dict())
    with pytest.raises(pb.InputError, match="gradient_influence: expected at least one checkpoint, got none"):
        pb.gradient_influence(model, loss_fn, data, x, y, checkpoints=[])
    with pytest.raises(pb.InputError, match="as many checkpoints as `learning_rates`, 2, got 1 checkpoints"):
        pb.gradient_influence(model, loss_fn, data, x, y, checkpoints=[state], learning_rates=[0.1, 0.2])
    with pytest.raises(pb.InputError, match="as many checkpoints as `learning_rates`, 1, got more checkpoints"):
        pb.gradient_influence(model, loss_fn, data, x, y, checkpoints=[state, state], learning_rates=[0.1])
    with pytest.raises(pb.InputError, match=r'got checkpoint 1: Missing key\(s\) in state_dict: "weight", "bias"'):
        pb.gradient_influence(model, loss_fn, data, x, y, checkpoints=[state, {}])
    with pytest.raises(pb.InputError, match="expected at least one batch of training samples, got none"):
        pb.gradient_influence(model, loss_fn, [], x, y)
    with pytest.raises(pb.InputError, match="expected `normalise` to be one of 'dot', 'cosine', got 'unit'"):
        pb.gradient_influence(model, loss_fn, data, x, y, normalise="unit")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="expected `x_query` with at least one sample, got no data"):
        pb.gradient_influence(model, loss_fn, data, x[:0], y[:0])


def test_plan() -> None:
    """Solves and bytes follow from the shapes; the dual wins for few samples, iterations for many."""
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))
    few = pb.plan_influence(model, (torch.randn(10, 30), torch.zeros(10)), 4, iterations=50)
    assert isinstance(few, pb.InfluencePlan)
    assert (few.num_samples, few.num_params, few.num_outputs, few.num_queries) == (10, 683, 3, 4)
    assert [r.solves for r in few.routes] == [4, 10, 4]
    assert [r.products for r in few.routes] == [4 * 51, 10 * 51, 8]
    forward = 2 * 10 * (30 * 20 + 20 * 3)
    assert few.routes[0].flops == 4 * 51 * 6 * forward
    assert [r.flops for r in few.routes[:2]] == [4 * 51 * 6 * forward, 10 * 51 * 6 * forward]
    assert [r.num_bytes for r in few.routes[:2]] == [6 * 4 * 683 * 4, 6 * 4 * 683 * 10]
    assert few.routes[2].num_bytes == 4 * (3 * 30**2 + 6 * 683 * 4)
    made = 30 * (2 * forward / 10) + 2 * 30**2 * 683 + 2 / 3 * 30**3  # 30 rows, their Gram matrix, its factors
    assert few.routes[2].flops == pytest.approx(made + 4 * (2 * 30**2 + 6 * forward), rel=1e-12)
    one_each = pb.plan_influence(model, (torch.randn(10, 30), torch.zeros(10)), 4, matrix="empirical_fisher").routes[2]
    made = 10 * (2 * forward / 10) + 2 * 10**2 * 683 + 2 / 3 * 10**3
    assert one_each.flops == pytest.approx(made + 4 * (2 * 10**2 + 6 * forward), rel=1e-12)
    blocks = pb.plan_influence(
        model.double(), (torch.randn(10, 30).double(), torch.zeros(10)), 7, block=3, iterations=2
    )
    assert [r.num_bytes for r in blocks.routes] == [6 * 8 * 683 * 3] * 2 + [8 * (3 * 30**2 + 6 * 683 * 3)]
    assert [r.products for r in blocks.routes] == [7 * 3, 10 * 3, 14]
    model.float()
    assert few.cheapest.name == "dual"
    batches = [(torch.randn(3000, 30), torch.zeros(3000)), (torch.randn(1000, 30), torch.zeros(1000))]
    many = pb.plan_influence(model, batches, 4)
    assert many.num_samples == 4000
    assert many.cheapest.name == "a solve a query"
    rows = pb.plan_influence(model, batches, 4, matrix="empirical_fisher").routes[2]
    assert rows.num_bytes < many.routes[2].num_bytes / 8
    assert [r.name for r in pb.plan_influence(model, batches, 4, matrix="hessian").routes] == [
        "a solve a query",
        "a solve a perturbation",
    ]
    text = str(few).splitlines()
    assert text[0] == "influence of 10 samples on 4 queries, P = 683, C = 3, 50 iterations assumed"
    assert text[2].split()[-4:] == [
        "4",
        "204",
        f"{few.routes[0].flops / 1e9:.4g}",
        f"{few.routes[0].num_bytes / 1e6:.4g}",
    ]
    with pytest.raises(pb.InputError, match="plan_influence: expected `num_queries` above 0, got 0"):
        pb.plan_influence(model, batches, 0)
    with pytest.raises(
        pb.InputError, match="plan_influence: expected `matrix` to be one of 'gauss_newton', .* got 'K'"
    ):
        pb.plan_influence(model, batches, 1, matrix="K")
