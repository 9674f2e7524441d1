"""``damped_curvature``: made once for all questions, which are answered as the functions answer them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pullback as pb
from pullback.influence import system
from pullback.influence.damped_curvature import DampedCurvature
from tests.influence.test_response import network

DAMPED: dict[str, Any] = {"damping": 0.3, "tol": 1e-9}


def questions(asked: Any, x: torch.Tensor, y: torch.Tensor, *given: Any, **settings: Any) -> dict[str, torch.Tensor]:
    """All questions, of the curvature or of the functions."""
    return {
        "response": asked.response(*given, torch.ones(len(x), dtype=x.dtype), wrt="weights", **settings).change,
        "query": asked.query_influence(*given, x[:2], y[:2], **settings).values,
        "self": asked.self_influence(*given, **settings).values,
        "points": asked.self_influence(*given, points=(x[:1], y[:1]), **settings).values,
        "left out": asked.leave_one_out(*given, **settings).changes,
    }


def noted(name: str, make: Any, made: list[str]) -> Any:
    """``make``, which notes down that it was called."""

    def making(*args: Any, **settings: Any) -> Any:
        made.append(name)
        return make(*args, **settings)

    return making


@pytest.mark.parametrize("method", ["auto", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cg", "dual"))])
def test_answers_are_those_of_the_functions(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operator, and one of whatever is factored or held, for all of them."""
    model, loss_fn, x, y = network(6, 2, 3, 2, "classes", seed=0)
    alone = questions(pb, x, y, model, loss_fn, (x, y), method=method, **DAMPED)
    made: list[str] = []
    for name in ("GaussNewton", "DampedInverse", "held_rows"):
        monkeypatch.setattr(system, name, noted(name, getattr(system, name), made))
    curvature = pb.damped_curvature(model, loss_fn, (x, y), method=method, **DAMPED)
    assert made == ["GaussNewton"]
    together = questions(curvature, x, y)
    for name, expected in alone.items():
        assert torch.allclose(together[name], expected, rtol=1e-6, atol=1e-8), name
    assert torch.equal(curvature.self_influence().values, together["self"])
    assert made.count("GaussNewton") == 1
    assert len(made) == 2
    assert repr(curvature) == (
        f"DampedCurvature(num_samples=6, num_params=17, damping=0.3, matrix='gauss_newton', method={method!r})"
    )
    b = torch.ones(17, 2, dtype=x.dtype)
    A = pb.GaussNewton(model, loss_fn, (x, y)).to_dense() + 0.3 * torch.eye(17)
    assert torch.allclose(A @ curvature.solve(b).x, b, atol=1e-6)
    assert torch.allclose(A @ curvature.solve(b[:, 0]).x, b[:, 0], atol=1e-6)


def test_a_model_or_data_that_changed_are_refused() -> None:
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double().eval()

    def ask(curvature: DampedCurvature) -> torch.Tensor:
        return curvature.self_influence(points=(x[:1], y[:1])).values

    curvature = pb.damped_curvature(model, nn.CrossEntropyLoss(), [(x, y)], **DAMPED)
    assert torch.equal(ask(curvature), ask(curvature))  # buffers that are put back are no change
    said = "DampedCurvature.self_influence: expected the model and the data the curvature was made of, got others. Call"
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(pb.InputError, match=said):
        ask(curvature)
    curvature = pb.damped_curvature(model, nn.CrossEntropyLoss(), (x, y), **DAMPED)
    x[0] += 1
    with pytest.raises(pb.InputError, match=r"again once weights, modes or data have changed\."):
        curvature.solve(torch.ones(curvature.num_params, dtype=x.dtype))
    with pytest.raises(pb.InputError, match="damped_curvature: expected `damping` of at least 0, got -1"):
        pb.damped_curvature(model, nn.CrossEntropyLoss(), (x, y), damping=-1)
    with pytest.raises(pb.InputError, match="DampedCurvature.query_influence: expected `block` above 0, got 0"):
        curvature.query_influence(x, y, block=0)
