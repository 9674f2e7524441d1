"""``tangent_kernel`` over all cases, all contractions. S4-04."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import take
from tests.cases import CASES, Case, build
from tests.compare import assert_same
from tests.thinned import thinned

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FORMS = ("ghost", "materialise", "shift")


def contracted(full: Tensor, contract: str) -> Tensor:
    """The dense tangent kernel (N1, N2, C, C) under a contraction."""
    return {
        "full": lambda: full,
        "trace": lambda: full.diagonal(dim1=2, dim2=3).sum(2),
        "diagonal": lambda: full.diagonal(dim1=2, dim2=3),
        "sum": lambda: full.sum((2, 3)),
    }[contract]()


@cache
def looped(name: str) -> Tensor:
    """Of three samples, in full."""
    model, _, x, _ = build(next(case for case in CASES if case.name == name), 3)
    return reference.tangent_kernel(model, x)


def choose(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Every layer takes the form, where it has it."""
    chosen = lambda factor, *_: form if form in factor.forms else factor.forms[0]
    monkeypatch.setattr("pullback.kernels.plan.make.cheapest_form", chosen)


@pytest.mark.parametrize(("case", "contract", "form"), thinned(CASES, ("full", "trace", "diagonal", "sum"), FORMS))
def test_equals_the_loop(case: Case, contract: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contraction, in every form, symmetric and between two sets."""
    choose(monkeypatch, form)
    model, _, x, _ = build(case, 3)
    expected = contracted(looped(case.name), contract)
    size = float(looped(case.name).abs().max())  # outputs may cancel in a sum
    kernel = pb.tangent_kernel(model, x, contract=contract)
    assert_same(kernel.total, expected, scale=size)
    assert_same(torch.stack(list(kernel.layers.values())).sum(0), expected, scale=size)
    assert_same(torch.stack(list(kernel.parameters.values())).sum(0), expected, scale=size)
    cut, rest = slice(0, 1), slice(1, 3)
    cross = pb.tangent_kernel(model, take(x, cut), x2=take(x, rest), contract=contract)
    assert_same(cross.total, expected[:1, 1:], scale=size)


@pytest.mark.parametrize("case", thinned(CASES))
def test_symmetric_to_the_bit(case: Case) -> None:
    model, _, x, _ = build(case, 4, torch.float32)
    full = pb.tangent_kernel(model, x, contract="full")
    dense = full.to_dense()
    assert torch.equal(dense, dense.T)
    assert torch.equal(full.total, full.total.permute(1, 0, 3, 2))
    trace = pb.tangent_kernel(model, x).total
    assert torch.equal(trace, trace.T)


@pytest.mark.parametrize(("case", "contract"), thinned(CASES, ("full", "trace", "diagonal")))
def test_tiles_and_pieces_do_not_matter(case: Case, contract: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, x, _ = build(case, 5)
    whole = pb.tangent_kernel(model, x, contract=contract).total
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_ROWS", 3)
    monkeypatch.setattr("pullback.kernels.plan.make.TILE_POSITIONS", 8)
    monkeypatch.setattr("pullback.gradients.rows.factor.Factor.piece_bytes", 1000)
    assert_same(pb.tangent_kernel(model, x, contract=contract).total, whole, 1e-12)


def test_is_an_operator() -> None:
    model, _, x, _ = build(CASES[0], 4)
    for contract in ("full", "diagonal", "trace"):
        kernel = pb.tangent_kernel(model, x, contract=contract)
        v = torch.randn(kernel.shape[1], 3, dtype=torch.float64)
        assert_same(kernel @ v, kernel.to_dense() @ v)
        assert_same(kernel.T @ v, kernel.to_dense().T @ v)


def test_the_last_layer_needs_no_product() -> None:
    """Its output gradients are the identity: the block is (A A^T + 1) times the identity."""
    model, _, x, _ = build(CASES[0], 4)
    kernel = pb.tangent_kernel(model, x, contract="full", forms={"5": "ghost"})  # the choice is the machine's
    hidden = model[:-1](x)
    block = torch.einsum("ij,ce->ijce", hidden @ hidden.T + 1, torch.eye(4, dtype=torch.float64))
    assert_same(kernel.layers["5"], block.detach())
    last = next(layer for layer in kernel.plan.layers if layer.parameters == ("5.weight", "5.bias"))
    assert last.flops == 4 * 4 * (5 + 1)


def test_two_parameter_sets() -> None:
    """Rows at one set of weights, columns at another: for drift."""
    model, loss_fn, x, y = build(CASES[0], 4)
    other, *_ = build(CASES[0], 4, seed=1)
    here, there = reference.output_gradients(model, x), reference.output_gradients(other, x)
    kernel = pb.tangent_kernel(model, x, model2=other, contract="full")
    assert_same(kernel.total, torch.einsum("icp,jep->ijce", here, there))
    g, h = (reference.gradient_matrix(m, loss_fn, x, y) for m in (model, other))
    assert_same(pb.backward_kernel(model, loss_fn, x, y, model2=other).total, g @ h.T)


def test_relation_to_the_backward_kernel() -> None:
    """K_ij = r_i^T Theta_ij r_j with r_i the derivative of the loss in the outputs."""
    model, _, x, y = build(CASES[0], 5)
    z = model(x).detach().requires_grad_()
    (r,) = torch.autograd.grad(nn.CrossEntropyLoss(reduction="sum")(z, y), z)
    theta = pb.tangent_kernel(model, x, contract="full").total
    expected = torch.einsum("ic,ijce,je->ij", r, theta, r)
    assert_same(pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).total, expected)


def test_bad_input() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(pb.InputError, match="`contract` to be one of 'trace', 'diagonal', 'full', 'sum', got 'all'"):
        pb.tangent_kernel(model, x, contract="all")
    with pytest.raises(pb.InputError, match="`x` with at least one sample"):
        pb.tangent_kernel(model, x[:0])
    with pytest.raises(pb.InputError, match=r"a model that returns real outputs \(N, ...\), got tuple"):
        pb.tangent_kernel(nn.LSTM(3, 2), x[:, None])
    with pytest.raises(pb.InputError, match="a form of `weight` among 'ghost', 'materialise', got 'shift'"):
        pb.tangent_kernel(model, x, forms={"weight": "shift"})
