"""Kronecker-factored natural gradient: through curvlinops where it is installed, a clear error where it is not."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import reference
from pullback.dynamics import NaturalGradient
from tests.compare import assert_same

F64 = torch.float64


def problem(loss_fn: nn.Module | None = None) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, loss_fn or nn.CrossEntropyLoss(), torch.randn(7, 3, dtype=F64), torch.randint(2, (7,))


def test_without_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    model, loss_fn, x, y = problem()
    optimizer = NaturalGradient(model, loss_fn, form="kronecker")
    with pytest.raises(ValueError, match=r"expected the package curvlinops .*pip install curvlinops-for-pytorch"):
        optimizer.step(x, y)


def test_a_damping_is_needed() -> None:
    model, loss_fn, _, _ = problem()
    for form in ("kernel", "kronecker"):
        with pytest.raises(ValueError, match=r"expected `damping` above 0, got 0.0"):
            NaturalGradient(model, loss_fn, damping=0.0, form=form)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any curvlinops: what is refused before it is asked, and what it refuses."""

    class Peer:
        @staticmethod
        def KFACLinearOperator(*_: Any, **__: Any) -> Any:
            raise NotImplementedError("no such layer")

    monkeypatch.setitem(sys.modules, "curvlinops", Peer)  # type: ignore[arg-type]
    model, _, x, y = problem()
    with pytest.raises(ValueError, match=r"reduction 'mean' for Kronecker factors, got reduction 'sum'"):
        NaturalGradient(model, nn.CrossEntropyLoss(reduction="sum"), form="kronecker").step(x, y)
    with pytest.raises(ValueError, match=r"got curvlinops' NotImplementedError: no such layer\. Use form='kernel'"):
        NaturalGradient(model, nn.CrossEntropyLoss(), form="kronecker").step(x, y)


@pytest.mark.parametrize("fisher", ["true", "sampled", "empirical"])
def test_a_step_is_that_of_its_blocks(fisher: str) -> None:
    """One linear layer, one sample: the Kronecker product is the Fisher matrix's own block of the weight."""
    pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(1, 3, dtype=F64), torch.tensor([1])
    before = model.weight.detach().flatten().clone()
    F = reference.dense_empirical_fisher(model, nn.CrossEntropyLoss(), x, y)
    if fisher == "true":
        F = reference.dense_fisher(model, nn.CrossEntropyLoss(), x, y)
    g = reference.gradient_matrix(model, nn.CrossEntropyLoss(), x, y).mean(0)
    optimizer = NaturalGradient(model, nn.CrossEntropyLoss(), 0.5, 0.1, fisher=fisher, form="kronecker")
    optimizer.step(x, y)
    assert optimizer.last.action == "step: kronecker"
    assert optimizer.last.converged
    if fisher != "sampled":
        expected = before - 0.5 * torch.linalg.solve(F + 0.1 * torch.eye(6, dtype=F64), g)
        assert_same(model.weight.detach().flatten(), expected, 1e-9)


def test_kronecker_goes_down_and_resumes() -> None:
    pytest.importorskip("curvlinops")
    ends = []
    for stop in (4, 2):
        model, loss_fn, x, y = problem()
        optimizer = NaturalGradient(model, loss_fn, 0.5, 0.1, fisher="sampled", form="kronecker", seed=3)
        for step in range(4):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = NaturalGradient(model, loss_fn, form="kronecker", fisher="sampled")
                optimizer.load_state_dict(state)
            loss = optimizer.step(x, y)
        ends.append(loss)
    assert torch.equal(*ends)
    groups = [{"params": [p], "damping": 0.1 * (i + 1)} for i, p in enumerate(model.parameters())]
    with pytest.raises(ValueError, match=r"one damping for Kronecker factors, got several"):
        NaturalGradient(model, loss_fn, form="kronecker", params=groups).step(x, y)
