"""Mixed second derivatives of a model's mean loss against dense ones, over all cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

import pullback as pb
from pullback import reference
from pullback.functional import ModelView, per_sample_loss, take
from tests.cases import CASES, Case, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

REAL_TARGETS = [c for c in CASES if not c.name.startswith(("mlp", "tokens", "tied", "conv2d", "conv3d"))]
N = 3


def sample_products(case: Case, wrt: str, vector: Tensor) -> Tensor:
    """<d^2 L_i / dw dtheta_i, vector> for every sample, (N, D), by differencing gradients along the vector in w."""
    model, loss_fn, x, y = build(case, N)
    view = ModelView.of(model)
    step = 1e-5
    flat = view.flatten(view.parameters).detach()
    slopes = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, value in view.unflatten(flat + sign * step * vector).items():
                view.parameters[name].copy_(value)
        leaves, structure = tree_flatten(y if wrt == "targets" else x)
        moved = [leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves]
        changed = tree_unflatten(moved, structure)
        losses = per_sample_loss(loss_fn, view(changed if wrt == "inputs" else x), changed if wrt == "targets" else y)
        real = [leaf for leaf in moved if leaf.requires_grad]
        found = torch.autograd.grad(losses.sum(), real, allow_unused=True, materialize_grads=True)
        slopes.append(torch.cat([g.reshape(N, -1) for g in found], 1))
    return (slopes[0] - slopes[1]) / (2 * step)


def is_real(batch: Any) -> bool:
    return any(leaf.is_floating_point() for leaf in tree_flatten(batch)[0])


@pytest.mark.parametrize("case", thinned(CASES))
def test_weights_and_labels_over_all_cases(case: Case) -> None:
    """S2-40: the columns are the gradients of the losses, or their differences, over N."""
    model, loss_fn, x, y = build(case, N)
    other = take(y, torch.tensor([1, 2, 0]))
    rows = reference.gradient_matrix(model, loss_fn, x, y)
    changed = reference.gradient_matrix(model, loss_fn, x, other) - rows
    scale = float(rows.abs().max()) + float(changed.abs().max())
    weights = pb.MixedDerivative(model, loss_fn, (x, y), "weights")
    labels = pb.MixedDerivative(model, loss_fn, (x, y), "labels", labels=other)
    u = torch.randn(rows.shape[1], 2, dtype=torch.float64)
    for op, dense in ((weights, rows.T / N), (labels, changed.T / N)):
        assert op.shape == tuple(dense.shape)
        assert op.theta_shape == (N,)
        assert_same(op.to_dense(), dense, 1e-9, scale=scale)
        assert_same(op.T @ u, dense.T @ u, 1e-9, scale=scale * float(u.norm()))


@pytest.mark.parametrize(("case", "wrt"), thinned(CASES, ["targets", "inputs"]))
def test_targets_and_inputs_over_all_cases(case: Case, wrt: Any) -> None:
    """S2-40: against differences of the gradients in theta; the two products are adjoint to rounding."""
    model, loss_fn, x, y = build(case, N)
    if not is_real(y if wrt == "targets" else x):
        with pytest.raises(pb.InputError, match=f"MixedDerivative: expected real numbers in the {wrt}, got integers"):
            pb.MixedDerivative(model, loss_fn, (x, y), wrt)
        return
    op = pb.MixedDerivative(model, loss_fn, (x, y), wrt)
    u = torch.randn(op.shape[0], 2, dtype=torch.float64)
    r = torch.randn(op.shape[1], 2, dtype=torch.float64)
    back = op.T @ u
    expected = torch.stack([sample_products(case, wrt, v).reshape(-1) for v in u.T], 1) / N
    scale = float(expected.abs().max())
    assert_same(back, expected, 1e-5, scale=scale + 1e-3)  # third derivatives bound the difference's error
    left, right = r.T @ back, (op @ r).T @ u
    assert_same(left, right, 1e-11, scale=float(right.abs().max()) + 1e-12)


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def test_equal_to_the_dense_derivative_of_the_whole_cost() -> None:
    """S2-40: to rounding, by double reverse differentiation of the flat cost."""
    model, x, y = small_net(), torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    view = ModelView.of(model)
    w = view.flatten(view.parameters).detach()

    def losses(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (view(x, view.unflatten(w)) - y).square().mean(1)

    costs = {
        "targets": (lambda w, t: losses(w, x, t.view(4, 2)).mean(), y),
        "inputs": (lambda w, t: losses(w, t.view(4, 2), y).mean(), x),
        "weights": (lambda w, t: (t * losses(w, x, y)).mean(), torch.ones(4, dtype=torch.float64)),
    }
    for wrt, (cost, theta) in costs.items():
        op = pb.MixedDerivative(model, nn.MSELoss(), (x, y), wrt)  # type: ignore[arg-type]
        dense = reference.dense_mixed_derivative(cost, w, theta.reshape(-1))
        assert_same(op.to_dense(), dense, 1e-12)
        assert_same(op.T.to_dense(), dense.T, 1e-12)
        doubled = pb.MixedDerivative(model, nn.MSELoss(), (x, y), wrt, count=8)  # type: ignore[arg-type]
        assert_different(doubled.to_dense(), dense, 0.1)


def test_batches_of_uneven_size_follow_each_other() -> None:
    model, x, y = small_net(), torch.randn(7, 2, dtype=torch.float64), torch.randint(2, (7,))
    loss_fn, parts = nn.CrossEntropyLoss(), [slice(0, 4), slice(4, 7)]
    for wrt in ("weights", "inputs", "labels"):
        other = {"labels": 1 - y} if wrt == "labels" else {}
        others = {"labels": [1 - y[p] for p in parts]} if wrt == "labels" else {}
        whole = pb.MixedDerivative(model, loss_fn, (x, y), wrt, **other)  # type: ignore[arg-type]
        batches = pb.MixedDerivative(model, loss_fn, [(x[p], y[p]) for p in parts], wrt, **others)  # type: ignore[arg-type]
        assert batches.theta_shape == whole.theta_shape == ((7, 2) if wrt == "inputs" else (7,))
        assert_same(batches.to_dense(), whole.to_dense(), 1e-13)
        assert_same(batches.T.to_dense(), whole.T.to_dense(), 1e-13)


def test_the_model_is_left_as_it_was() -> None:
    model, x, y = small_net(), torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    op = pb.MixedDerivative(model, nn.MSELoss(), (x, y), "inputs")
    op.to_dense()
    op.T.to_dense()
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert not x.requires_grad


def test_errors() -> None:
    model, loss_fn = small_net(), nn.CrossEntropyLoss()
    x, y = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pytest.raises(pb.InputError, match="expected `wrt` to be one of 'targets', 'inputs', .*, got 'y'"):
        pb.MixedDerivative(model, loss_fn, (x, y), "y")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match=r"real numbers in the targets, got integers. Use wrt='labels' or wrt='wei"):
        pb.MixedDerivative(model, loss_fn, (x, y), "targets")
    with pytest.raises(pb.InputError, match="expected other targets in `labels`, got None. Pass the labels"):
        pb.MixedDerivative(model, loss_fn, (x, y), "labels")
    with pytest.raises(pb.InputError, match="expected no `labels` for wrt='inputs', got some. Use wrt='labels'"):
        pb.MixedDerivative(model, loss_fn, (x, y), "inputs", labels=y)
    with pytest.raises(
        pb.InputError, match=r"`labels` in batches of \[4\] samples, got \[3\]. Give every sample a lab"
    ):
        pb.MixedDerivative(model, loss_fn, (x, y), "labels", labels=y[:3])
    with pytest.raises(pb.InputError, match="MixedDerivative: expected labels from 0 to 1, got 7 for sample 2"):
        pb.MixedDerivative(model, loss_fn, (x, y), "labels", labels=torch.tensor([0, 1, 7, 0]))
    with pytest.raises(pb.InputError, match="MixedDerivative: expected at least one batch, got none"):
        pb.MixedDerivative(model, loss_fn, [], "weights")
    conv = nn.Sequential(nn.Conv1d(2, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    data = [(torch.randn(2, 2, t, dtype=torch.float64), torch.tensor([0, 1])) for t in (3, 4)]
    with pytest.raises(pb.InputError, match=r"samples of one shape in all batches, got shapes \[\(2, 3\), \(2, 4\)\]"):
        pb.MixedDerivative(conv, loss_fn, data, "inputs")
    random = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double()
    with pytest.raises(
        pb.UnsupportedError, match=r"MixedDerivative: expected .*, got dropout in train mode in layer `1`"
    ):
        pb.MixedDerivative(random, loss_fn, (x, y), "weights")
