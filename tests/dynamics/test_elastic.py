"""Elastic weight consolidation (S1-54): known minima, the dense quadratic form, and forgetting measured."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import reference
from pullback.dynamics import DampedNewton, ElasticPenalty, Newton
from tests.compare import assert_same

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "dynamics.json").read_text())["quadratics"]
ROWS = KNOWN["ewc_two_quadratics"]["task A: 1/2*FA*(t-0)^2, FA=4; task B: 1/2*1*(t-1)^2; min of B + lam/2 FA (t-0)^2"]


@pytest.mark.parametrize("fisher", ["diagonal", "full"])
@pytest.mark.parametrize("strength", ROWS, ids=str)
def test_two_quadratics(strength: str, fisher: str) -> None:
    """S1-54: task A has F = 4 at 0, B is (t - 1)^2 / 2: Newton's step on the sum is its known minimum."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.full((1, 1), 2.0**0.5, dtype=F64), torch.zeros(1, 1, dtype=F64)
    penalty = ElasticPenalty(model, nn.MSELoss(), (x, y), float(strength), fisher=fisher)
    assert penalty().item() == 0
    one = torch.ones(1, 1, dtype=F64)
    both = lambda z, y: (z - y).square().sum(1) / 2 + penalty()
    Newton(model, both).step(one, one)
    assert model.weight.item() == pytest.approx(ROWS[strength], abs=1e-12)


def made(n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model, torch.randn(n, 3, dtype=F64), torch.randint(3, (n,))


@pytest.mark.parametrize("kind", ["true", "empirical"])
@pytest.mark.parametrize("n", [2, 40])
def test_value_and_gradient_are_those_of_the_matrix(n: int, kind: str) -> None:
    """In batches of uneven size; few samples, whose rows are kept, and many, whose matrix is."""
    model, x, y = made(n)
    dense = reference.dense_fisher if kind == "true" else reference.dense_empirical_fisher
    F = dense(model, nn.CrossEntropyLoss(), x, y)
    data: Any = (x, y) if n == 2 else [(x[:33], y[:33]), (x[33:], y[33:])]
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    for fisher, matrix in (("full", F), ("diagonal", torch.diag(F.diagonal()))):
        nn.utils.vector_to_parameters(before.clone(), model.parameters())
        penalty = ElasticPenalty(model, nn.CrossEntropyLoss(), data, 3.0, fisher=fisher, kind=kind)
        delta = torch.randn(len(before), dtype=F64)
        nn.utils.vector_to_parameters(before + delta, model.parameters())
        value = penalty()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])
        assert value.item() == pytest.approx(1.5 * float(delta @ matrix @ delta), rel=1e-10)
        assert_same(gradient, 3.0 * matrix @ delta, 1e-10)
        assert penalty.diagonal is not None
        assert_same(torch.cat([d.flatten() for d in penalty.diagonal.values()]), F.diagonal(), 1e-10)


def test_only_some_parameters_and_a_strength_that_changes() -> None:
    model, x, y = made()
    penalty = ElasticPenalty(model, nn.CrossEntropyLoss(), (x, y), params=["2"])
    assert set(penalty.anchor) == {"2.weight", "2.bias"}
    with torch.no_grad():
        model[0].weight += 1.0
    assert penalty().item() == 0
    with torch.no_grad():
        model[2].weight[0] += 1.0
    first = penalty().item()
    penalty.strength = 2.0
    assert penalty().item() == pytest.approx(2 * first)
    assert first > 0


def settle(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> None:
    """Go to the minimum of a convex loss."""
    optimizer = DampedNewton(model, loss_fn)
    for _ in range(10):
        optimizer.step(x, y)
    assert optimizer.last.predicted_decrease < 1e-9


def test_forgetting_falls_with_the_strength() -> None:
    """S1-54: two tasks of one linear classifier, labels disagree: what B costs A, by strength, at exact minima."""
    torch.manual_seed(1)
    xa, xb = torch.randn(40, 3, dtype=F64), torch.randn(40, 3, dtype=F64) + 0.5
    ya, yb = (xa[:, 0] > 0.2 * xa[:, 1]).long(), (xb[:, 1] + 0.5 * xb[:, 0] > 0.5).long()
    loss_fn, costs = nn.CrossEntropyLoss(), []
    decay = lambda: 0.01 * sum(p.square().sum() for p in model.parameters())
    for strength in (0.0, 1.0, 10.0, 100.0):
        model = nn.Linear(3, 2).double()
        for p in model.parameters():
            nn.init.zeros_(p)
        task = lambda z, y: nn.functional.cross_entropy(z, y, reduction="none") + decay()
        settle(model, task, xa, ya)
        start = loss_fn(model(xa), ya).item()
        penalty = ElasticPenalty(model, loss_fn, (xa, ya), strength, fisher="full")
        settle(model, lambda z, y: task(z, y) + penalty(), xb, yb)  # noqa: B023
        costs.append(loss_fn(model(xa), ya).item() - start)
    assert all(b < a for a, b in pairwise(costs))
    assert costs[-1] < 0.05 * costs[0]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = made()
    loss_fn = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"`strength` of at least 0, got -1"):
        ElasticPenalty(model, loss_fn, (x, y), -1.0)
    with pytest.raises(ValueError, match=r"`fisher` to be one of 'diagonal', 'kronecker', 'full', got 'block'"):
        ElasticPenalty(model, loss_fn, (x, y), fisher="block")
    with pytest.raises(ValueError, match=r"`kind` to be one of 'true', 'empirical', got 'sampled'"):
        ElasticPenalty(model, loss_fn, (x, y), kind="sampled")
    with pytest.raises(ValueError, match=r"negative log-likelihood"):
        ElasticPenalty(model, nn.L1Loss(), (x, torch.randn(6, 3, dtype=F64)))
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ValueError, match=r"ElasticPenalty: expected the package curvlinops .*pip install"):
        ElasticPenalty(model, loss_fn, (x, y), fisher="kronecker")


def test_kronecker() -> None:
    """Of one layer and one sample the blocks are the matrix's own."""
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(1, 3, dtype=F64), torch.tensor([1])
    F = reference.dense_fisher(model, nn.CrossEntropyLoss(), x, y)
    penalty = ElasticPenalty(model, nn.CrossEntropyLoss(), [(x, y)], 2.0, fisher="kronecker")
    with torch.no_grad():
        model.weight += torch.arange(6.0).reshape(2, 3).square()
    value = penalty()
    (gradient,) = torch.autograd.grad(value, model.weight)
    delta = torch.arange(6.0, dtype=F64).square()
    assert value.item() == pytest.approx(float(delta @ F @ delta), rel=1e-9)
    assert_same(gradient.flatten(), 2 * F @ delta, 1e-9)
