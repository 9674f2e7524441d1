"""What calls return can be copied, pickled and saved with torch, and answers afterwards as before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from tests.cases import CASES, build
from tests.compare import assert_same

CE = nn.CrossEntropyLoss()


def through_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_torch,
}
NAMES = ("conv2d", "tokens", "tied", "gated", "generator")  # factors of every class


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limit", [None, 2**28])
def test_kernels(way: str, limit: int | None) -> None:
    """With all blocks, also those that were not asked for and would be computed from the model."""
    model, loss_fn, x, y = build(CASES[0], 4)
    kernel = pb.backward_kernel(model, loss_fn, x, y, memory_limit=limit)
    again = WAYS[way](kernel)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)  # the copy does not depend on it
    assert torch.equal(again.total, kernel.total)
    assert list(again.layers) == list(kernel.layers)
    assert list(again.parameters) == list(kernel.parameters)
    assert_same(sum(again.layers.values()), kernel.total)
    assert_same(sum(again.parameters.values()), kernel.total)
    assert str(again.plan) == str(kernel.plan)
    assert torch.equal(again.losses, kernel.losses)
    v = torch.randn(4, dtype=torch.float64)
    assert torch.equal(again @ v, kernel @ v)
    with pytest.raises(KeyError):
        again.layers["none"]


def test_tangent_kernels() -> None:
    model, _, x, _ = build(CASES[0], 3)
    for contract in ("full", "diagonal"):
        kernel = pb.tangent_kernel(model, x, contract=contract)  # type: ignore[arg-type]
        again = pickle.loads(pickle.dumps(kernel))
        assert torch.equal(again.total, kernel.total)
        assert all(torch.equal(again.layers[name], block) for name, block in kernel.layers.items())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_rows(name: str) -> None:
    model, loss_fn, x, y = build(next(case for case in CASES if case.name == name), 3)
    matrix = pb.GradientMatrix(model, loss_fn, x, y)
    again = pickle.loads(pickle.dumps(matrix))
    v, u = torch.randn(matrix.shape[1], 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert torch.equal(again @ v, matrix @ v)
    assert torch.equal(again.T @ u, matrix.T @ u)
    assert torch.equal(again.gram @ u, matrix.gram @ u)
    assert torch.equal(copy.deepcopy(matrix.gram) @ u, matrix.gram @ u)
    assert torch.equal(again.losses, matrix.losses)
    assert all(torch.equal(again.layers[layer].to_dense(), part.to_dense()) for layer, part in matrix.layers.items())


def test_operators() -> None:
    """After products, when they hold a graph."""
    model, loss_fn, x, y = build(CASES[0], 3)
    made = (pb.Hessian(model, loss_fn, (x, y)), pb.GaussNewton(model, loss_fn, (x, y)), pb.Jacobian(model, x))
    for op in made:
        v = torch.randn(op.shape[1], dtype=torch.float64)
        before: Tensor = op @ v
        assert torch.equal(copy.deepcopy(op) @ v, before)
        assert_same(op @ v, before, 1e-14)


def test_results() -> None:
    model, x, y = nn.Linear(2, 2).double().eval(), torch.randn(4, 2, dtype=torch.float64), torch.arange(4) % 2
    kernel = pb.backward_kernel(model, CE, x, y)
    settings: dict[str, Any] = {"damping": 0.1}
    results = [
        pb.plan_kernel(model, CE, x, y),
        pb.sketch_kernel(model, CE, x, y, size=2),
        pb.check_gradients(model, CE, x, y),
        pb.curvature_spectrum(model, CE, (x, y)),
        pb.moments(kernel),
        pb.alignment(kernel),
        pb.spectrum(kernel),
        pb.layer_flow(kernel),
        pb.gradient_noise(kernel),
        pb.self_influence(model, CE, (x, y), **settings),
        pb.leave_one_out(model, CE, (x, y), **settings),
        pb.response(model, CE, (x, y), torch.ones(4, dtype=torch.float64), wrt="weights", **settings),
        pb.eigenvalues(pb.Hessian(model, CE, (x, y)), k=1),
    ]
    for result in results:
        assert repr(pickle.loads(pickle.dumps(result))) == repr(result)
