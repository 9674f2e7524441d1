"""Responses of networks: primal against dual and dense, adjoint against forward, and against training again."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import ModelView, per_sample_loss
from tests.cases import CASES, Case, build
from tests.compare import assert_different, assert_same
from tests.thinned import thinned

LOSSES = {"squares": nn.MSELoss(reduction="sum"), "classes": nn.CrossEntropyLoss(), "bits": nn.BCEWithLogitsLoss()}


def network(n: int, d: int, width: int, outputs: int, loss: str, seed: int) -> tuple[nn.Module, Any, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, outputs)).double()
    x = torch.randn(n, d, dtype=torch.float64)
    y = torch.randint(outputs, (n,)) if loss == "classes" else torch.rand(n, outputs, dtype=torch.float64)
    return model, LOSSES[loss], x, y


def dense_matrix(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor, matrix: str) -> Tensor:
    made = {
        "gauss_newton": reference.dense_gauss_newton,
        "hessian": reference.dense_hessian,
        "empirical_fisher": reference.dense_empirical_fisher,
    }
    return made[matrix](model, loss_fn, x, y)


@given(
    n=st.integers(1, 7),
    d=st.integers(1, 4),
    width=st.integers(1, 5),
    outputs=st.integers(1, 4),
    loss=st.sampled_from(sorted(LOSSES)),
    matrix=st.sampled_from(["gauss_newton", "empirical_fisher"]),
    damping=st.floats(1e-3, 10),
)
def test_dual_equals_primal(n: int, d: int, width: int, outputs: int, loss: str, matrix: Any, damping: float) -> None:
    """The push-through identity over drawn shapes, to 1e-9: as an operator, between rows, and on rows."""
    model, loss_fn, x, y = network(n, d, width, outputs, loss, seed=n + 10 * d + 100 * width)
    dense = dense_matrix(model, loss_fn, x, y, matrix)
    primal = torch.linalg.inv(dense + damping * torch.eye(len(dense), dtype=torch.float64))
    inverse = pb.DampedInverse(model, loss_fn, x, y, damping=damping, matrix=matrix)
    assert_same(inverse.to_dense(), primal, 1e-9)
    rows = inverse.rows.to_dense()
    assert_same(inverse.between_rows, rows @ primal @ rows.T, 1e-9)
    assert_same(inverse.of_rows(torch.eye(len(rows), dtype=torch.float64)), primal @ rows.T, 1e-9)
    assert inverse.residual(inverse.between_rows) < 1e-11
    r = torch.randn(n, dtype=torch.float64)
    settings: dict[str, Any] = {"wrt": "weights", "damping": damping, "matrix": matrix}
    gradients = reference.gradient_matrix(model, loss_fn, x, y)
    expected = -primal @ gradients.T @ r / n
    scale = float(expected.abs().max()) + 1e-12
    for method, tol in (("cg", 1e-12), ("dual", 1e-8)):
        found = pb.response(model, loss_fn, (x, y), r, method=method, tol=tol, max_iters=2000, **settings)  # type: ignore[arg-type]
        assert_same(found.change, expected, 1e-9, scale=scale)
        assert found.solution.converged
        assert (found.solution.iterations == 0) == (method == "dual" or not expected.any())


@pytest.mark.parametrize("case", thinned(CASES))
def test_influence_of_weights_over_all_cases(case: Case) -> None:
    """Adjoint = forward = dense, on losses, by conjugate gradients and by the dual with the empirical Fisher."""
    model, loss_fn, x, y = build(case, 4)
    model_, _, xq, yq = build(case, 3, seed=1)
    del model_
    G, Q = (reference.gradient_matrix(model, loss_fn, *pair) for pair in ((x, y), (xq, yq)))
    fisher = G.T @ G / 4 + 0.5 * torch.eye(G.shape[1], dtype=torch.float64)
    dense = -Q @ torch.linalg.solve(fisher, G.T) / 4
    settings: dict[str, Any] = {"damping": 0.5, "matrix": "empirical_fisher"}
    for method in ("cg", "dual"):
        found = pb.query_influence(model, loss_fn, (x, y), xq, yq, method=method, tol=1e-12, block=2, **settings)  # type: ignore[arg-type]
        assert_same(found.values, dense, 1e-9)
        assert found.converged == (found.residual <= 1e-12)
        assert found.residual < (1e-12 if method == "cg" else 1e-10)
    r = torch.randn(4, dtype=torch.float64)
    forward = pb.response(model, loss_fn, (x, y), r, wrt="weights", tol=1e-12, **settings)
    assert_same(forward.losses(xq, yq), dense @ r, 1e-9, scale=float(dense.abs().max()) * 4)


@pytest.mark.parametrize("matrix", ["gauss_newton", "hessian"])
def test_adjoint_equals_forward_for_every_perturbation(matrix: Any) -> None:
    """On outputs and losses of queries, for targets, inputs, weights, labels and decay."""
    model, loss_fn, x, y = network(5, 3, 4, 2, "squares", seed=3)
    xq, yq = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    settings: dict[str, Any] = {"damping": 3.0, "matrix": matrix, "tol": 1e-13}
    shapes = {"targets": (5, 2), "inputs": (5, 3), "weights": (5,), "labels": (5,), "decay": ()}
    dense = dense_matrix(model, loss_fn, x, y, matrix) + 3.0 * torch.eye(26, dtype=torch.float64)
    for wrt, shape in shapes.items():
        r = torch.randn(shape, dtype=torch.float64)
        extra: dict[str, Any] = {"labels": y + 1} if wrt == "labels" else {}
        forward = pb.response(model, loss_fn, (x, y), r, wrt=wrt, **extra, **settings)  # type: ignore[arg-type]
        on_losses = pb.query_influence(model, loss_fn, (x, y), xq, yq, wrt=wrt, **extra, **settings)  # type: ignore[arg-type]
        on_outputs = pb.query_influence(model, loss_fn, (x, y), xq, wrt=wrt, block=4, **extra, **settings)  # type: ignore[arg-type]
        assert on_losses.values.shape == (3, *shape)
        assert on_outputs.values.shape == (3, 2, *shape)
        both = ((on_losses.values, forward.losses(xq, yq)), (on_outputs.values, forward.outputs(xq)))
        for adjoint, found in both:
            assert_same((adjoint * r).flatten(found.dim()).sum(-1) if shape else adjoint * r, found, 1e-10)
        if wrt == "decay":
            b = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) * r
        else:
            b = pb.MixedDerivative(model, loss_fn, (x, y), wrt, **extra).to_dense() @ r.reshape(-1)  # type: ignore[arg-type]
        assert_same(forward.change, -torch.linalg.solve(dense, b), 1e-10)


def tanh_fit(loss: str) -> tuple[nn.Module, Any, Tensor, Tensor, float]:
    """A small tanh net at a minimum of mean loss + decay/2 |w|^2, to 1e-11."""
    model, loss_fn, x, y = network(12, 2, 4, 3 if loss == "classes" else 1, loss, seed=5)
    decay = 0.02
    retrain(model, loss_fn, x, y, decay)
    return model, loss_fn, x, y, decay


def retrain(
    model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor, decay: float, weights: Tensor | None = None
) -> Tensor:
    """Train from where the model is to the next minimum; the change of its weights."""
    view = ModelView.of(model)
    start = view.flatten(view.parameters).detach()
    s = torch.ones(len(x), dtype=torch.float64) if weights is None else weights

    def cost(w: Tensor) -> Tensor:
        losses = per_sample_loss(loss_fn, view(x, view.unflatten(w)), y)
        return (s * losses).mean() + decay / 2 * w.square().sum()

    w = reference.minimise(cost, start)
    with torch.no_grad():
        for name, value in view.unflatten(w).items():
            view.parameters[name].copy_(value)
    return w - start


def test_response_to_a_label_against_training_again() -> None:
    """S2-47: 50 iterations of conjugate gradients predict what a label change of 1e-2 does, within 10 percent."""
    for i in range(3):
        model, loss_fn, x, y, decay = tanh_fit("squares")
        r = torch.zeros_like(y)
        r[i] = 1e-2
        queries = torch.randn(20, 2, dtype=torch.float64)
        settings: dict[str, Any] = {"damping": decay, "matrix": "hessian", "tol": 0}
        found = pb.response(model, loss_fn, (x, y), r, max_iters=50, **settings)
        predicted, before = found.outputs(queries), model(queries).detach()
        none = pb.response(model, loss_fn, (x, y), r, max_iters=0, **settings)
        assert not none.outputs(queries).any()  # the original fit
        change = retrain(model, loss_fn, x, y + r, decay)
        assert_same(found.change, change, 0.1)
        assert_same(predicted, model(queries).detach() - before, 0.1)


def test_responses_to_weights_labels_and_decay_against_training_again() -> None:
    """S2-45: derivatives of a softmax net's minimum, by central differences of training again."""
    step = 1e-4
    for wrt in ("weights", "inputs", "decay", "labels"):
        model, loss_fn, x, y, decay = tanh_fit("classes")
        settings: dict[str, Any] = {"damping": decay, "matrix": "hessian", "tol": 1e-12}
        shape = {"weights": (12,), "inputs": (12, 2), "decay": (), "labels": (12,)}[wrt]
        r = torch.randn(shape, dtype=torch.float64)
        other = (y + 1) % 3
        extra: dict[str, Any] = {"labels": other} if wrt == "labels" else {}
        found = pb.response(model, loss_fn, (x, y), r, wrt=wrt, **extra, **settings).change  # type: ignore[arg-type]
        ends = []
        for sign in (step, -step):
            model, loss_fn, x, y, decay = tanh_fit("classes")
            if wrt == "labels":  # both labels, with weights 1 - theta and theta
                s = torch.cat([1 - sign * r, sign * r]) * 2
                ends.append(retrain(model, loss_fn, torch.cat([x, x]), torch.cat([y, other]), decay, s))
            elif wrt == "decay":
                ends.append(retrain(model, loss_fn, x, y, decay + sign * float(r)))
            elif wrt == "inputs":
                ends.append(retrain(model, loss_fn, x + sign * r, y, decay))
            else:
                ends.append(retrain(model, loss_fn, x, y, decay, 1 + sign * r))
        assert_same(found, (ends[0] - ends[1]) / (2 * step), 1e-4)


def test_the_error_falls_with_every_iteration() -> None:
    """S2-42: damped Gauss-Newton solve with a number of iterations: the error in the matrix's norm never grows."""
    model, loss_fn, x, y, decay = tanh_fit("squares")
    A = reference.dense_gauss_newton(model, loss_fn, x, y) + decay * torch.eye(17, dtype=torch.float64)
    r = torch.randn_like(y)
    exact = -torch.linalg.solve(A, pb.MixedDerivative(model, loss_fn, (x, y), "targets").to_dense() @ r[:, 0])
    errors = []
    for iterations in range(13):
        found = pb.response(model, loss_fn, (x, y), r, damping=decay, tol=0, max_iters=iterations)
        assert found.solution.iterations == iterations
        left = found.change - exact
        errors.append(float(left @ A @ left) ** 0.5)
    assert errors[0] == pytest.approx(float(exact @ A @ exact) ** 0.5)
    above_rounding = [e for e in errors if e > 1e-12 * errors[0]]
    assert len(above_rounding) >= 6
    assert errors[: len(above_rounding)] == above_rounding  # it does not come back
    assert all(after < before for before, after in pairwise(above_rounding))


def test_batches_and_a_part_of_the_parameters() -> None:
    model, loss_fn, x, y = network(7, 2, 3, 2, "classes", seed=0)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    xq, yq = x[:2] + 1, y[:2]
    settings: dict[str, Any] = {"damping": 0.3, "tol": 1e-12}
    for method in ("cg", "dual"):
        for params in (None, ["2"]):
            both = [
                pb.query_influence(model, loss_fn, data, xq, yq, method=method, params=params, **settings)  # type: ignore[arg-type]
                for data in ((x, y), batches)
            ]
            assert_same(both[1].values, both[0].values, 1e-9)
            own = [
                pb.self_influence(model, loss_fn, data, method=method, params=params, **settings)  # type: ignore[arg-type]
                for data in ((x, y), batches)
            ]
            assert_same(own[1].values, own[0].values, 1e-9)
            same = pb.query_influence(model, loss_fn, (x, y), x, y, method=method, params=params, **settings)  # type: ignore[arg-type]
            assert_same(own[0].values, -same.values.diagonal(), 1e-9)
    last = pb.query_influence(model, loss_fn, (x, y), xq, yq, params=["2"], **settings).values
    assert_different(
        last, both[0].values * 0 + pb.query_influence(model, loss_fn, (x, y), xq, yq, **settings).values, 0.01
    )


def test_what_an_influence_says_about_its_solves() -> None:
    model, loss_fn, x, y = network(6, 2, 3, 2, "classes", seed=0)
    found = pb.query_influence(model, loss_fn, (x, y), x[:3], y[:3], damping=0.1, tol=0, max_iters=4, block=2)
    assert isinstance(found, pb.Influence)
    assert (found.iterations, found.num_matvecs) == (
        4,
        21,
    )  # 12 in iterations, and 3 for residuals in the solver, by rows and by passes
    assert not found.converged
    assert 0 < found.residual < 1


def test_a_response_belongs_to_its_weights() -> None:
    """Queries after further training would be answered with another Jacobian."""
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    found = pb.response(model, loss_fn, (x, y), torch.ones(4), wrt="weights", damping=1.0)
    assert isinstance(found, pb.Response)
    assert found.outputs(x).shape == (4, 2)
    with torch.no_grad():
        model[0].weight += 1e-3
    with pytest.raises(pb.InputError, match="Response.outputs: expected the weights the response was computed at, got"):
        found.outputs(x)
    with pytest.raises(pb.InputError, match="Response.losses: .* Ask before training on, or call response again"):
        found.losses(x, y)


def test_float32_and_where_things_are() -> None:
    model, loss_fn, x, y = network(6, 2, 3, 2, "classes", seed=0)
    double = pb.query_influence(model, loss_fn, (x, y), x, y, damping=0.5, tol=1e-12).values
    model, x = model.float(), x.float()
    for method in ("cg", "dual"):
        found = pb.query_influence(model, loss_fn, (x, y), x, y, damping=0.5, tol=1e-5, method=method)  # type: ignore[arg-type]
        assert found.values.dtype == torch.float32
        assert found.converged
        assert_same(found.values, double, 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu() -> None:
    model, loss_fn, x, y = network(6, 2, 3, 2, "classes", seed=0)
    expected = pb.query_influence(model, loss_fn, (x, y), x, y, damping=0.5, tol=1e-12).values
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    found = pb.query_influence(model, loss_fn, (x, y), x, y, damping=0.5, tol=1e-12).values
    assert found.is_cuda
    assert_same(found.cpu(), expected, 1e-9)


def test_a_loader_is_walked_through_again_and_a_shuffling_one_is_named() -> None:
    model, loss_fn, x, y = network(7, 2, 3, 2, "classes", seed=0)
    pairs = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=3)
    settings: dict[str, Any] = {"damping": 0.5, "tol": 1e-12}
    whole = pb.query_influence(model, loss_fn, (x, y), x, y, **settings).values
    assert_same(pb.query_influence(model, loss_fn, loader, x, y, **settings).values, whole, 1e-9)
    shuffling = torch.utils.data.DataLoader(pairs, batch_size=3, shuffle=True)
    with pytest.raises(pb.InputError, match="data that gives the same batches every time"):
        pb.query_influence(model, loss_fn, shuffling, x, y, **settings)


def test_a_language_model() -> None:
    """Dictionaries of tokens in, an object with logits out, attention: influence on a sequence's loss."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = Scores(transformers.GPT2LMHeadModel(config)).double().eval()
    x = {"input_ids": torch.randint(11, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.long)}
    y = torch.randint(11, (3, 5))
    G = reference.gradient_matrix(model, nn.CrossEntropyLoss(), x, y)
    A = reference.dense_empirical_fisher(model, nn.CrossEntropyLoss(), x, y)
    expected = -G @ torch.linalg.solve(A + torch.eye(len(A), dtype=torch.float64), G.T) / 3
    settings: dict[str, Any] = {"damping": 1.0, "matrix": "empirical_fisher", "tol": 1e-12}
    for method in ("cg", "dual"):
        found = pb.query_influence(model, nn.CrossEntropyLoss(), (x, y), x, y, method=method, **settings)  # type: ignore[arg-type]
        assert_same(found.values, expected, 1e-9)


class Scores(nn.Module):
    """Logits with the classes second, as cross-entropy wants them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, **batch: Tensor) -> Tensor:
        return self.body(**batch).logits.transpose(1, 2)


def test_nothing_is_left_changed() -> None:
    """Weights, gradients, modes and the random state, also after an error."""
    model, loss_fn, x, y = network(5, 2, 3, 2, "classes", seed=0)
    model.train()
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    settings: dict[str, Any] = {"damping": 0.5}
    pb.response(model, loss_fn, (x, y), torch.ones(5), wrt="weights", **settings).losses(x, y)
    pb.query_influence(model, loss_fn, (x, y), x, wrt="inputs", method="dual", **settings)
    pb.leave_one_out(model, loss_fn, (x, y), **settings)
    pb.self_influence(model, loss_fn, (x, y), method="dual", **settings)
    pb.gradient_influence(model, loss_fn, (x, y), x, y, checkpoints=[model.state_dict()])
    with pytest.raises(pb.InputError):
        pb.response(model, loss_fn, (x, y), torch.ones(5), wrt="weights", matrix="hessian", damping=1e-9, tol=1e-12)
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not x.requires_grad


def test_errors() -> None:
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    data = (x, y)
    ones = torch.ones(4)
    with pytest.raises(
        pb.InputError, match=r"response: expected a positive definite matrix \(gauss_newton\) for `dampin"
    ):
        pb.response(model, loss_fn, data, ones, wrt="weights", damping=0)
    with pytest.raises(pb.InputError, match="got a rank of at most 8 for 17 parameters. Pass a `damping` above 0, for"):
        pb.query_influence(model, loss_fn, data, x, y, damping=0)
    with pytest.raises(pb.InputError, match="got a rank of at most 4 for 17 parameters"):
        pb.query_influence(model, loss_fn, data, x, y, damping=0, matrix="empirical_fisher")
    linear = nn.Linear(1, 2).double()  # softmax does not see a shift of all scores: singular with enough samples too
    with pytest.raises(pb.InputError, match="got a smallest eigenvalue of .*. Pass a `damping` above"):
        pb.self_influence(linear, loss_fn, (x[:, :1], y), damping=0)
    hessian: dict[str, Any] = {"wrt": "weights", "matrix": "hessian"}
    with pytest.raises(
        pb.InputError, match=r"\(hessian\) for `damping=0`, got a smallest eigenvalue of -.*, or use matr"
    ):
        pb.response(model, loss_fn, data, ones, damping=0, **hessian)
    with pytest.raises(
        pb.InputError, match="solve: expected a positive definite operator, got curvature .* Gauss-Newton"
    ):
        pb.response(model, loss_fn, data, ones, damping=1e-6, tol=1e-12, **hessian)
    with pytest.raises(pb.InputError, match="response: expected `damping` of at least 0, got -1. Pass a non-negative"):
        pb.response(model, loss_fn, data, ones, wrt="weights", damping=-1)
    with pytest.raises(pb.InputError, match="response: expected `damping` above 0, got 0. Pass a positive `damping`"):
        pb.response(model, loss_fn, data, ones, wrt="weights", damping=0, method="dual")
    with pytest.raises(
        pb.InputError, match="a matrix made of samples' rows for method='dual', got 'hessian'. Use matri"
    ):
        pb.response(model, loss_fn, data, ones, damping=1, method="dual", **hessian)
    with pytest.raises(pb.InputError, match=r"a `direction` of shape \(4,\) for wrt='weights', got \(3,\). Reshape it"):
        pb.response(model, loss_fn, data, torch.ones(3), wrt="weights", damping=1)
    with pytest.raises(pb.InputError, match=r"expected a `direction` of shape \(4,\), got None. Say which change"):
        pb.response(model, loss_fn, data, wrt="weights", damping=1)
    with pytest.raises(pb.InputError, match="response: expected `wrt` to be one of 'targets', .* got 'rows'"):
        pb.response(model, loss_fn, data, ones, wrt="rows", damping=1)  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="expected `matrix` to be one of 'gauss_newton', .* got 'fisher'"):
        pb.response(model, loss_fn, data, ones, wrt="weights", matrix="fisher", damping=1)  # type: ignore[arg-type]


def test_errors_of_queries_names_and_models() -> None:
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    data, ones = (x, y), torch.ones(4)
    with pytest.raises(
        pb.InputError, match="query_influence: expected `x_query` with at least one sample, got no data"
    ):
        pb.query_influence(model, loss_fn, data, x[:0], y[:0], damping=1)
    with pytest.raises(pb.InputError, match="expected `x_query` and `y_query` of the same length, got 4 and 2 samples"):
        pb.query_influence(model, loss_fn, data, x, y[:2], damping=1)
    with pytest.raises(pb.InputError, match="query_influence: expected `block` above 0, got 0"):
        pb.query_influence(model, loss_fn, data, x, y, damping=1, block=0)
    found = pb.response(model, loss_fn, data, ones, wrt="weights", damping=1)
    with pytest.raises(pb.InputError, match="Response.outputs: expected `x_query` with at least one sample"):
        found.outputs(x[:0])
    with pytest.raises(pb.InputError, match="Response.losses: expected `x_query` and `y_query` of the same length"):
        found.losses(x, y[:1])
    with pytest.raises(pb.InputError, match="response: expected `params` to be a list of names, got '0'"):
        pb.response(model, loss_fn, data, ones, wrt="weights", damping=1, params="0")
    random = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double()
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer `1`. Call model.eval"):
        pb.response(random, loss_fn, data, ones, wrt="weights", damping=1)
    with pytest.raises(
        pb.InputError, match="DampedInverse: expected `matrix` to be one of 'gauss_newton', 'empirical_f"
    ):
        pb.DampedInverse(model, loss_fn, x, y, damping=1, matrix="hessian")
    with pytest.raises(pb.InputError, match="expected a model that returns real outputs .*, got tuple. Wrap it"):
        pb.DampedInverse(Pair(), loss_fn, x, y, damping=1)


class Pair(nn.Module):
    """A model whose output is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x), x
