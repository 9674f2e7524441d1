"""Jacobians in parameters and inputs against loops of gradients; pullback metrics."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import differentiable, output_hessian
from pullback.operators import jacobian
from pullback.operators.curvature import base as curvature
from tests.cases import CASES, Case, build
from tests.compare import assert_different, assert_same
from tests.stacks.models import stack

TOKENS = ("tokens", "tied")  # cases whose inputs are integers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_the_parameters(case: Case) -> None:
    """S2-04: the Jacobian; vectors, blocks, the transpose and the dense form, on every kind of layer."""
    model, _, x, _ = build(case, 3)
    before = [p.detach().clone() for p in model.parameters()]
    J, blocks = pb.Jacobian(model, x), reference.output_gradients(model, x)
    dense = blocks.flatten(0, 1)
    V = torch.randn(J.shape[1], 3, dtype=torch.float64)
    U = torch.randn(J.shape[0], 3, dtype=torch.float64)
    size = float(dense.norm() * V.norm())
    assert J.shape == tuple(dense.shape)
    assert_same(J @ V, dense @ V, 1e-12, scale=size)
    assert_same(J @ V[:, 0], dense @ V[:, 0], 1e-12, scale=size)
    assert_same(J.T @ U, dense.T @ U, 1e-12, scale=size)
    assert_same(J.T @ U[:, 0], dense.T @ U[:, 0], 1e-12, scale=size)
    assert_same(J.to_dense(), dense, 1e-12)
    assert_same(J.per_sample(), blocks, 1e-12)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TOKENS], ids=lambda case: case.name)
def test_in_the_inputs(case: Case) -> None:
    """Blocks of the samples, (N, C, D); the rest of the matrix is zero."""
    model, _, x, _ = build(case, 3)
    J, blocks = pb.Jacobian(model, x, wrt="input"), reference.input_gradients(model, x)
    dense = torch.block_diag(*blocks)
    V = torch.randn(J.shape[1], 3, dtype=torch.float64)
    U = torch.randn(J.shape[0], 3, dtype=torch.float64)
    size = float(dense.norm() * V.norm())
    assert_same(J.per_sample(), blocks, 1e-12)
    assert_same(J.to_dense(), dense, 1e-12)
    assert_same(J @ V, dense @ V, 1e-12, scale=size)
    assert_same(J.T @ U, dense.T @ U, 1e-12, scale=size)
    assert_same(J.T @ U[:, 0], dense.T @ U[:, 0], 1e-12, scale=size)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, of jacfwd
def test_forward_and_reverse_agree() -> None:
    """S2-04: jacfwd, jacrev and the operator, 1e-10."""
    model, _, x, _ = build(CASES[0], 3)
    view = pb.ModelView.of(model)
    flat = view.flatten(view.parameters).detach()
    outputs = lambda w: view(x, view.unflatten(w)).reshape(-1)
    J = pb.Jacobian(model, x).to_dense()
    assert_same(torch.func.jacrev(outputs)(flat), J, 1e-10)
    assert_same(torch.func.jacfwd(outputs)(flat), J, 1e-10)


@given(n=st.integers(1, 4), width=st.integers(1, 5), outputs=st.integers(1, 3), seed=st.integers(0, 99))
def test_drawn_shapes(n: int, width: int, outputs: int, seed: int) -> None:
    """More rows than columns, and the other way round."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, outputs)).double().eval()
    x = torch.randn(n, 2, dtype=torch.float64)
    assert_same(pb.Jacobian(model, x).per_sample(), reference.output_gradients(model, x), 1e-12)
    assert_same(pb.Jacobian(model, x, wrt="input").per_sample(), reference.input_gradients(model, x), 1e-12)


def test_some_parameters_and_their_order() -> None:
    model, _, x, _ = build(CASES[0], 3)
    whole = pb.Jacobian(model, x).to_dense()
    view = pb.ModelView.of(model)
    first = sum(view.parameters[name].numel() for name in view.layers["1"])
    assert_same(pb.Jacobian(model, x, params=["1"]).to_dense(), whole[:, :first], 1e-14)
    assert_same(pb.Jacobian(model, x, params=["5", "3"]).to_dense(), whole[:, first:], 1e-14)


def test_a_kept_graph_follows_weights_and_inputs() -> None:
    model, _, x, _ = build(CASES[0], 3)
    J = pb.Jacobian(model, x)
    first = J.to_dense()
    with torch.no_grad():
        model[1].weight.mul_(1.5)
    second = J.to_dense()
    assert_different(second, first, 1e-2)
    assert_same(second, reference.output_gradients(model, x).flatten(0, 1), 1e-12)
    x.mul_(2)
    assert_same(J.to_dense(), reference.output_gradients(model, x).flatten(0, 1), 1e-12)


def test_columns_in_blocks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small bound leads to several passes with the same answer."""
    model, _, x, _ = build(CASES[0], 3)
    dense = reference.output_gradients(model, x).flatten(0, 1)
    sizes = []
    original = jacobian.derivative

    def counted(ends: list[Tensor], starts: list[Tensor], given: list[Tensor], batched: bool) -> list[Tensor | None]:
        sizes.append(len(given[0]) if batched else 1)
        return original(ends, starts, given, batched)

    monkeypatch.setattr(jacobian, "derivative", counted)
    J = pb.Jacobian(model, x)
    assert_same(J.to_dense(), dense, 1e-12)
    assert sizes == [12]
    monkeypatch.setattr(jacobian, "BLOCK_BYTES", curvature.GRAPH_TO_FORWARD * J._forward_bytes * 5 + 5)
    sizes.clear()
    assert_same(J.to_dense(), dense, 1e-12)
    assert sizes == [5, 5, 2]


class Squared(torch.autograd.Function):
    """An operation without a batching rule; ``twice`` says whether it can be differentiated twice."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)  # type: ignore[attr-defined]
        return z.square()

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 2 * z * slope


class Squares(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return Squared.apply(z)


def test_an_operation_without_batching_rule_is_looped_over() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Squares(), nn.Linear(4, 2)).double().eval()
    x = torch.randn(3, 3, dtype=torch.float64)
    dense = reference.output_gradients(model, x).flatten(0, 1)
    J = pb.Jacobian(model, x)
    V = torch.randn(J.shape[1], 2, dtype=torch.float64)
    assert_same(J @ V, dense @ V, 1e-12)
    assert_same(J.to_dense(), dense, 1e-12)


def test_hugging_face_gpt2(caplog: pytest.LogCaptureFixture) -> None:
    """Dict inputs, an output object, tied embeddings, fused attention: said once, backend restored."""
    differentiable.say_plain_attention.cache_clear()
    model, _, x, _ = stack("gpt2-sdpa").build(2)
    flash = torch.backends.cuda.flash_sdp_enabled()
    with caplog.at_level(logging.WARNING, "pullback"):
        J = pb.Jacobian(model, x)
        V = torch.randn(J.shape[1], 2, dtype=torch.float64)
        product, pulled = J @ V, J.T @ torch.ones(J.shape[0], 1, dtype=torch.float64)
        pb.Jacobian(model, x)
    assert [r.getMessage()[:9] for r in caplog.records if "fused attention" in r.getMessage()] == ["Jacobian:"]
    assert torch.backends.cuda.flash_sdp_enabled() == flash
    few = [0, 5, J.shape[0] - 1]  # rows, by ordinary gradients
    flat = model(**x).logits.reshape(-1)
    for row in few:
        gradients = torch.autograd.grad(flat[row], list(model.parameters()), retain_graph=True, materialize_grads=True)
        g = torch.cat([part.reshape(-1) for part in gradients])
        assert_same(product[row], g @ V, 1e-10)
    total = torch.autograd.grad(flat.sum(), list(model.parameters()), materialize_grads=True)
    assert_same(pulled[:, 0], torch.cat([part.reshape(-1) for part in total]), 1e-10)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_what_cannot_be_answered_is_refused() -> None:
    x = torch.randn(3, 4)
    linear = nn.Linear(4, 2)
    with pytest.raises(pb.InputError, match="Jacobian: expected `wrt` to be one of 'params', 'input', got 'inputs'"):
        pb.Jacobian(linear, x, wrt="inputs")
    with pytest.raises(pb.InputError, match="Jacobian: expected `params` with wrt='params', got wrt='input'"):
        pb.Jacobian(linear, x, wrt="input", params=["weight"])
    with pytest.raises(pb.InputError, match="floating inputs with wrt='input', got none. Differentiate in embedded"):
        pb.Jacobian(nn.Embedding(3, 2), torch.tensor([[0, 1]]), wrt="input")
    with pytest.raises(pb.InputError, match="all in torch.float32 on cpu, got torch.float64 on cpu"):
        pb.Jacobian(nn.Sequential(linear, nn.Linear(2, 2).double()), x)
    with pytest.raises(pb.UnsupportedError, match="batch norm in train mode in layer `1`. Call model.eval"):
        pb.Jacobian(nn.Sequential(linear, nn.BatchNorm1d(2)), x)
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer `1`. Call model.eval"):
        pb.Jacobian(nn.Sequential(linear, nn.Dropout(0.5)), x)
    with pytest.raises(pb.UnsupportedError, match="got other outputs on batch 0 the second time"):
        pb.Jacobian(nn.Sequential(linear, Noise()), x)
    with pytest.raises(pb.UnsupportedError, match="got another output for sample 0 alone than in the batch"):
        pb.Jacobian(nn.Sequential(linear, Centred()), x)
    with pytest.raises(pb.InputError, match="one floating tensor .*, got tuple. Wrap it to return one tensor"):
        pb.Jacobian(nn.LSTM(4, 2), x.unsqueeze(1))
    with pytest.raises(pb.InputError, match="one row of outputs per sample, got 1 rows of outputs for 3 samples"):
        pb.Jacobian(nn.Sequential(nn.Flatten(0), nn.Linear(12, 2), nn.Unflatten(0, (1, 2))), x)
    with pytest.raises(pb.InputError, match="finite"):
        pb.Jacobian(linear, x / 0)


def test_state_is_left_alone() -> None:
    """Modes, buffers and the random state; also after an error in the model."""
    model, x = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), Squares()).eval(), torch.randn(5, 4)
    model[0].train()
    state = [b.clone() for b in model.buffers()], [m.training for m in model.modules()], torch.get_rng_state()
    J = pb.Jacobian(model, x)
    J.to_dense()
    model[2] = Noise()
    with pytest.raises(pb.UnsupportedError, match="other outputs"):
        pb.Jacobian(model, x)
    assert all(torch.equal(b, before) for b, before in zip(model.buffers(), state[0], strict=True))
    assert [m.training for m in model.modules()][:3] == state[1][:3]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert all(p.grad is None for p in model.parameters())


def test_a_first_layer_that_works_in_place() -> None:
    """The model is handed clones of the inputs it is differentiated in."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.block_diag(*(model[1].weight.detach() * (row > 0) for row in x))
    assert_same(pb.Jacobian(model, x, wrt="input").to_dense(), expected, 1e-14)


def test_frozen_models_have_input_jacobians() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double().requires_grad_(False), torch.ones(2, 3).double()
    assert_same(pb.Jacobian(model, x, wrt="input").per_sample(), reference.input_gradients(model, x), 1e-14)


def test_one_output_a_sample_without_an_axis() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    J = pb.Jacobian(model, x)
    assert J.num_outputs == 1
    assert_same(J.to_dense(), torch.cat([x, torch.ones(4, 1).double()], 1), 1e-14)


@pytest.mark.parametrize("name", ["mlp", "conv2d", "two_inputs", "sequence_first", "recurrent"])
def test_the_loss_s_output_hessian_as_metric_gives_gauss_newton(name: str) -> None:
    """S1-48: with M = H_z the pullback metric is G, the dense reference's; it follows the weights."""
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == name), 3)
    A = pb.pullback_metric(model, x, lambda z: output_hessian(loss_fn, z, y))
    assert_same(A.to_dense(), reference.dense_gauss_newton(model, loss_fn, x, y), 1e-10)
    with torch.no_grad():
        next(model.parameters()).mul_(1.3)
    assert_same(A.to_dense(), reference.dense_gauss_newton(model, loss_fn, x, y), 1e-10)
    assert A.symmetric


def test_a_metric_is_asked_for_once_at_the_same_outputs() -> None:
    model, x = nn.Linear(2, 2).double(), torch.randn(3, 2, dtype=torch.float64)
    seen: list[torch.Tensor] = []

    def metric(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return torch.diag_embed(z.square())

    A = pb.pullback_metric(model, x, metric)
    for _ in range(2):
        A @ torch.ones(6, dtype=torch.float64)
    assert len(seen) == 1
    with torch.no_grad():
        model.bias.add_(1.0)
    for _ in range(2):
        A @ torch.ones(6, dtype=torch.float64)
    assert len(seen) == 2
    assert_same(seen[1].detach(), model(x).detach(), 1e-15)


@given(n=st.integers(1, 3), shared=st.booleans(), seed=st.integers(0, 99))
def test_metrics_of_both_sides(n: int, shared: bool, seed: int) -> None:
    """J^T M J / N by explicit matrices, one metric or one a sample, in parameters and inputs; PSD."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    x, root = torch.randn(n, 2, dtype=torch.float64), torch.randn(n, 2, 2, dtype=torch.float64)
    metric = root @ root.mT
    if shared:
        metric = metric[0]
    for wrt, J in (("params", reference.output_gradients(model, x)), ("input", reference.input_gradients(model, x))):
        blocks = metric.expand(n, 2, 2)
        expected = (
            sum(J[i].T @ blocks[i] @ J[i] for i in range(n)) / n
            if wrt == "params"
            else torch.block_diag(*(J[i].T @ blocks[i] @ J[i] for i in range(n))) / n
        )
        A = pb.pullback_metric(model, x, metric, wrt=wrt)
        assert_same(A.to_dense(), expected, 1e-12)
        v = torch.randn(A.shape[0], dtype=torch.float64)
        assert float(v @ (A @ v)) >= -1e-12


def test_what_is_no_metric_is_refused() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(pb.InputError, match=r"`metric` \(2, 2\) or \(4, 2, 2\), got shape \(3, 3\)"):
        pb.pullback_metric(model, x, torch.eye(3))
    with pytest.raises(pb.InputError, match=r"`metric` \(2, 2\) or \(4, 2, 2\), got float"):
        pb.pullback_metric(model, x, lambda z: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(pb.InputError, match="`metric` in torch.float32 on cpu, got torch.float64 on cpu"):
        pb.pullback_metric(model, x, torch.eye(2).double())
    with pytest.raises(pb.InputError, match="a symmetric `metric`, got one that differs from its transpose"):
        pb.pullback_metric(model, x, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(pb.InputError, match="a symmetric `metric`, got nan or inf"):
        pb.pullback_metric(model, x, torch.eye(2) * float("nan"))
    with pytest.raises(pb.InputError, match="positive semi-definite `metric`, got an eigenvalue -1. Use J.T @ M @ J"):
        pb.pullback_metric(model, x, torch.diag(torch.tensor([1.0, -1.0])))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_device_follows_the_model(case: Case) -> None:
    model, _, x, _ = build(case, 3)
    expected = reference.output_gradients(model, x).flatten(0, 1)
    moved = {k: v.cuda() for k, v in x.items()} if isinstance(x, dict) else x.cuda()
    J = pb.Jacobian(model.cuda(), moved)
    v = torch.randn(J.shape[1], dtype=torch.float64)
    assert J.device.type == "cuda"
    assert_same((J @ v.cuda()).cpu(), expected @ v, 1e-9)
    assert_same(J.to_dense().cpu(), expected, 1e-9)
