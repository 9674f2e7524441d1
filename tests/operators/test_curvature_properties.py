"""Identities of curvature matrices over drawn networks, and numbers known by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pullback as pb
from pullback import reference
from pullback.functional import output_hessian
from pullback.modules import MLP
from tests.compare import assert_different, assert_same

NUMBERS = json.loads((Path(__file__).parents[1] / "data" / "taylor_curvature.json").read_text())
LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "squared": nn.MSELoss(),
    "bits": nn.BCEWithLogitsLoss(reduction="sum"),
    "huber": nn.HuberLoss(delta=0.7),
}
networks = st.tuples(
    st.lists(st.integers(1, 4), min_size=2, max_size=4), st.sampled_from(sorted(LOSSES)), st.integers(1, 6)
)


def drawn(widths: list[int], loss: str, n: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    layers: list[nn.Module] = []
    for d, p in itertools.pairwise(widths):
        layers += [nn.Linear(d, p), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    x, c = torch.randn(n, widths[0], dtype=torch.float64), widths[-1]
    y = torch.randint(c, (n,)) if loss == "cross-entropy" else torch.rand(n, c, dtype=torch.float64).round()
    return model, LOSSES[loss], x, y


def operators(model: nn.Module, loss_fn: Any, data: Any) -> list[Any]:
    made = [pb.Hessian(model, loss_fn, data), pb.GaussNewton(model, loss_fn, data)]
    made += [pb.GaussNewton(model, loss_fn, data, classical=True), pb.Fisher(model, loss_fn, data, kind="empirical")]
    if not isinstance(loss_fn, nn.HuberLoss):
        made += [pb.Fisher(model, loss_fn, data), pb.Fisher(model, loss_fn, data, kind="sampled", num_samples=2)]
    return made


@given(networks)
def test_linear_symmetric_and_semi_definite(drawing: tuple[list[int], str, int]) -> None:
    """A(au + bv) = aAu + bAv; <u, Av> = <Au, v>; S2-30, S1-84: all but the Hessian have no negative eigenvalue."""
    model, loss_fn, x, y = drawn(*drawing)
    for op in operators(model, loss_fn, (x, y)):
        u, v = torch.randn(2, op.shape[1], dtype=torch.float64)
        scale = float((op @ u).norm() + (op @ v).norm()) + 1e-9
        assert_same(op @ (2 * u - 3 * v), 2 * (op @ u) - 3 * (op @ v), 1e-12, scale=3 * scale)
        assert_same((op @ u) @ v, u @ (op @ v), 1e-12, scale=scale * float(u.norm() + v.norm()))
        assert torch.allclose(op @ torch.stack([u, v], 1), torch.stack([op @ u, op @ v], 1), atol=1e-12 * scale)
        if not isinstance(op, pb.Hessian):
            eigenvalues = torch.linalg.eigvalsh(op.to_dense())
            assert eigenvalues.min() >= -1e-10 * max(float(eigenvalues.max()), 1e-12)


@given(networks, st.data())
def test_any_split_into_batches_is_one_batch(drawing: tuple[list[int], str, int], data: st.DataObject) -> None:
    """S2-01, S2-05: the mean over all samples, whatever the batches' sizes."""
    model, loss_fn, x, y = drawn(*drawing)
    n = len(x)
    cuts = sorted(data.draw(st.sets(st.integers(1, n - 1), max_size=3))) if n > 1 else []
    pieces = [(x[a:b], y[a:b]) for a, b in itertools.pairwise([0, *cuts, n])]
    for whole, parts in zip(operators(model, loss_fn, (x, y)), operators(model, loss_fn, pieces), strict=True):
        if getattr(whole, "kind", "") != "sampled":  # every batch has draws of its own
            expected = whole.to_dense()
            assert_same(parts.to_dense(), expected, 1e-10, scale=float(expected.abs().max()) + 1e-12)


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from(sorted(LOSSES)), st.integers(1, 5))
def test_gauss_newton_is_the_hessian_where_the_network_is_linear(d: int, c: int, loss: str, n: int) -> None:
    """S2-30: linear in the parameters, though not in the inputs; and the Hessian of the linearised model anywhere."""
    features = nn.Sequential(nn.Linear(d, 3), nn.Tanh()).requires_grad_(False)
    x, y = torch.randn(n, d, dtype=torch.float64), torch.rand(n, c, dtype=torch.float64).round()
    y = torch.randint(c, (n,)) if loss == "cross-entropy" else y
    model = nn.Sequential(features, nn.Linear(3, c)).double()
    expected = pb.Hessian(model, LOSSES[loss], (x, y)).to_dense()
    assert_same(pb.GaussNewton(model, LOSSES[loss], (x, y)).to_dense(), expected, 1e-10, scale=1.0)


@given(networks.filter(lambda drawing: drawing[1] != "cross-entropy"))
def test_exact_at_a_perfect_fit(drawing: tuple[list[int], str, int]) -> None:
    """S2-33: H = G where every residual is zero."""
    model, loss_fn, x, _ = drawn(*drawing)
    targets = model(x).detach()
    targets = targets.sigmoid() if isinstance(loss_fn, nn.BCEWithLogitsLoss) else targets
    H, G = pb.Hessian(model, loss_fn, (x, targets)), pb.GaussNewton(model, loss_fn, (x, targets))
    assert_same(H.to_dense(), G.to_dense(), 1e-10, scale=1.0)


class Chain(nn.Module):
    """f(x) = w2 phi(w1 x)."""

    def __init__(self, w1: float, w2: float, phi: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w1, w2], dtype=torch.float64))
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        return self.w[1] * self.phi(self.w[0] * x)


def half_squared(z: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (z - y).square().sum(1)


def test_two_terms_of_the_hessian() -> None:
    """S1-44: H = J^T H_z J + sum of dL/dz d2f, by its numbers; the second term is gone where t = f."""
    known = NUMBERS["tiny_tanh_net"]
    model = Chain(*known["w"], torch.tanh)
    x, t = torch.tensor([[known["x"]]], dtype=torch.float64), torch.tensor([[known["t"]]], dtype=torch.float64)
    H, G = pb.Hessian(model, half_squared, (x, t)), pb.GaussNewton(model, half_squared, (x, t))
    assert_same(H.to_dense(), torch.tensor(known["hessian"], dtype=torch.float64), 1e-12)
    assert_same(G.to_dense(), torch.tensor(known["gauss_newton"], dtype=torch.float64), 1e-12)
    assert_same(H.to_dense() - G.to_dense(), torch.tensor(known["H_minus_G=(f-t)*d2f"], dtype=torch.float64), 1e-12)
    fitted = x, model(x).detach()
    assert_same(
        pb.Hessian(model, half_squared, fitted).to_dense(), pb.GaussNewton(model, half_squared, fitted).to_dense()
    )


def test_relu_has_second_derivatives_across_layers() -> None:
    """S1-46: H12 - G12 = (f - t) x = 1.8 in an active ReLU network; one of the two spectra goes below zero."""
    known = NUMBERS["tiny_relu_net_active"]
    # f = 1.5 and G = J J^T fix w and x: J1 = w2 x = 3, J2 = w1 x = 0.75; (f - t) x = 1.8
    model = Chain(0.5, 2.0, torch.relu)
    x, t = torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64)
    assert float(model(x).detach()) == known["f"]
    H, G = pb.Hessian(model, half_squared, (x, t)).to_dense(), pb.GaussNewton(model, half_squared, (x, t)).to_dense()
    assert_same(H, torch.tensor(known["hessian"], dtype=torch.float64), 1e-12)
    assert_same(G, torch.tensor(known["gauss_newton"], dtype=torch.float64), 1e-12)
    assert float(H[0, 1] - G[0, 1]) == pytest.approx(1.8, rel=1e-12)
    for op, name in ((pb.Hessian, "hessian"), (pb.GaussNewton, "gauss_newton")):
        (a, b), (_, c) = known[name]
        half, reach = (a + c) / 2, (((a - c) / 2) ** 2 + b**2) ** 0.5
        found = pb.eigenvalues(op(model, half_squared, (x, t)), 2, tol=1e-12).values
        assert found.tolist() == pytest.approx([half + reach, half - reach], abs=1e-11)
    assert known["hessian"][0][1] ** 2 > known["hessian"][0][0] * known["hessian"][1][1]  # indefinite


def test_sharpness_and_the_jacobian() -> None:
    """S1-49: the top eigenvalue of J^T J is the square of J's largest singular value; with N samples, over N."""
    known = NUMBERS["gauss_newton_top_eig"]
    J = torch.tensor(known["J"], dtype=torch.float64)  # rows are samples of a linear model
    model = nn.Linear(3, 1, bias=False).double()
    top = lambda op: float(torch.linalg.eigvalsh(op.to_dense())[-1])
    classical = pb.GaussNewton(model, nn.MSELoss(), (J, torch.zeros(2, 1).double()), classical=True)
    assert len(J) * top(classical) == pytest.approx(known["lambda_max(J^TJ)"], rel=1e-12)
    assert float(torch.linalg.matrix_norm(J, 2)) == pytest.approx(known["sigma_max"], rel=1e-12)
    model.weight.data = torch.tensor([[3.0, 0.0, 0.0]]).double()
    assert float(torch.linalg.matrix_norm(model.weight.detach(), 2)) == 3.0  # the input Jacobian is another number
    assert top(classical) == pytest.approx(3.0, rel=1e-12)


def test_output_hessian_of_the_softmax() -> None:
    """S2-29: diag(p) - p p^T in the scores, by its numbers and eigenvalues; S1-48: pulled back it gives G."""
    known = NUMBERS["softmax_ce_output_hessian"]
    z = torch.tensor([known["z"]], dtype=torch.float64)
    found = output_hessian(nn.CrossEntropyLoss(), z, torch.tensor([0]))[0]
    assert_same(found, torch.tensor(known["H_z=diag(p)-pp^T"], dtype=torch.float64), 1e-12)
    assert_same(torch.linalg.eigvalsh(found), torch.tensor([0, 0.118553, 0.370904]).double(), 2e-6)
    model, loss_fn, x, y = drawn([3, 4, 3], "cross-entropy", 5)
    J, M = reference.output_gradients(model, x), output_hessian(loss_fn, model(x).detach(), y)
    pulled = torch.einsum("icp,ice,ieq->pq", J, M, J) / 5
    assert_same(pb.GaussNewton(model, loss_fn, (x, y)).to_dense(), pulled, 1e-10)


def test_pullback_sampling() -> None:
    """S2-34: z = J^T H_z^(1/2) xi has the covariance G, to 5 percent in 10,000 samples."""
    for loss in ("cross-entropy", "squared", "bits", "huber"):
        model, loss_fn, x, y = drawn([2, 2, 2], loss, 3)
        for classical in (False, True):
            op = pb.GaussNewton(model, loss_fn, [(x[:1], y[:1]), (x[1:], y[1:])], classical=classical)
            z = op.sample(10_000, seed=1)
            exact = op.to_dense()
            assert float((z @ z.T / 10_000 - exact).norm()) <= 0.05 * float(exact.norm())
            assert torch.equal(op.sample(2, seed=1)[:, 0], op.sample(2, seed=1)[:, 0])
    model, _, x, y = drawn([2, 2], "squared", 3)
    op = pb.GaussNewton(model, lambda z, t: -(z - t).square().sum(1), (x, y))
    with pytest.raises(
        pb.UnsupportedError, match="sample: expected a loss convex in the outputs, got an output Hes.*-2"
    ):
        op.sample(1)
    with pytest.raises(pb.InputError, match="GaussNewton.sample: expected `num_samples` above 0, got 0"):
        op.sample(0)


def logistic() -> tuple[nn.Module, nn.Module, Tensor, Tensor, dict[str, Any]]:
    known = NUMBERS["logistic_fisher"]
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([known["w"]], dtype=torch.float64)
    x, y = torch.tensor(known["X"], dtype=torch.float64), torch.tensor(known["y"], dtype=torch.float64)
    return model, nn.BCEWithLogitsLoss(), x, y.unsqueeze(1), known


def test_fisher_matrices_of_logistic_regression() -> None:
    """S1-84: true and empirical, by their numbers; S1-86: F = -E d2 ln p = Hessian = Gauss-Newton."""
    model, loss_fn, x, y, known = logistic()
    expected = torch.tensor(known["true_fisher=GGN=Hessian"], dtype=torch.float64)
    for op in (pb.Fisher, pb.Hessian, pb.GaussNewton):
        assert_same(op(model, loss_fn, (x, y)).to_dense(), expected, 1e-10)
    empirical = pb.Fisher(model, loss_fn, (x, y), kind="empirical").to_dense()
    assert_same(empirical, torch.tensor(known["empirical_fisher"], dtype=torch.float64), 1e-10)
    gradient = torch.autograd.grad(loss_fn(model(x), y), model.weight)[0][0]
    natural = torch.linalg.solve(expected, gradient)
    assert_same(natural, torch.tensor(known["natural_gradient"], dtype=torch.float64), 1e-9)


class Normal(nn.Module):
    """Mean and deviation of a normal distribution, whatever the input."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([mean, deviation], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), 2)


def minus_log_density(z: Tensor, y: Tensor) -> Tensor:
    return z[:, 1].log() + 0.5 * ((y - z[:, 0]) / z[:, 1]).square()


def test_fisher_and_divergences() -> None:
    """S1-85: KL is d^T F d / 2 to second order. S1-88: the mean squared change of ln p is d^T F d."""
    F_known = torch.tensor(NUMBERS["fisher_gaussian(mu,sigma)_sigma2"]["F"], dtype=torch.float64)
    known = NUMBERS["kl_vs_half_dFd"]
    d = torch.tensor(known["delta"], dtype=torch.float64)
    # targets at Gauss-Hermite nodes of N(0, 4), repeated by their weights: means over them are expectations
    nodes = 2 * torch.tensor([-(3.0**0.5), 0.0, 3.0**0.5], dtype=torch.float64)
    y = nodes.repeat_interleave(torch.tensor([1, 4, 1]))
    model = Normal(0.0, 2.0)
    op = pb.Fisher(model, minus_log_density, (torch.zeros(6, 1).double(), y), kind="empirical")
    assert_same(op.to_dense(), F_known, 1e-12)
    quadratic = float(d @ (op @ d))
    assert 0.5 * quadratic == pytest.approx(known["half_delta^T F delta"], rel=1e-12)
    moved = Normal(*(model.theta.detach() + d).tolist())
    kl = float((torch.log(moved.theta[1] / 2) + (4 + moved.theta[0] ** 2) / (2 * moved.theta[1] ** 2) - 0.5).detach())
    assert kl == pytest.approx(known["KL"], rel=1e-9)
    assert abs(kl - 0.5 * quadratic) <= 2 * float(d.norm()) * quadratic
    z, moved_z = model(y.unsqueeze(1)).detach(), moved(y.unsqueeze(1)).detach()
    squared = float((minus_log_density(moved_z, y) - minus_log_density(z, y)).square().mean())
    assert squared == pytest.approx(quadratic, rel=5 * float(d.norm()))
    halved = Normal(*(model.theta.detach() + d / 2).tolist())(y.unsqueeze(1)).detach()
    finer = float((minus_log_density(halved, y) - minus_log_density(z, y)).square().mean()) * 4
    assert abs(finer - quadratic) < 0.6 * abs(squared - quadratic)  # the error is of third order


def test_risk_and_gradient_are_means() -> None:
    """S2-01, S2-05: the mean of the samples' losses, and its gradient the mean of theirs."""
    model, loss_fn, x, y = drawn([3, 4, 3], "cross-entropy", 6)
    each = reference.gradient_matrix(model, loss_fn, x, y)
    whole = torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))
    assert_same(each.mean(0), torch.cat([g.reshape(-1) for g in whole]), 1e-12)
    losses = torch.stack([loss_fn(model(x[i : i + 1]), y[i : i + 1]) for i in range(6)])
    assert_same(losses.mean().detach(), loss_fn(model(x), y).detach(), 1e-12)


def test_second_order_taylor() -> None:
    """S2-11, S3-01: |J(w + d) - J - g^T d - d^T H d / 2| / |d|^3 stays bounded; H is symmetric."""
    model, loss_fn, x, y = drawn([3, 4, 3], "cross-entropy", 6)
    H = pb.Hessian(model, loss_fn, (x, y))
    parameters = dict(model.named_parameters())
    w = H.view.flatten({n: p.detach() for n, p in parameters.items()})
    cost = lambda v: loss_fn(H.view(x, H.view.unflatten(v)), y).detach()
    loss = loss_fn(model(x), y)
    g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(parameters.values()))])
    v = torch.randn_like(w)
    v /= v.norm()
    ratios = [
        float((cost(w + h * v) - cost(w) - h * (g @ v) - h * h / 2 * (v @ (H @ v))).abs()) / h**3
        for h in (1e-1, 3e-2, 1e-2, 3e-3)
    ]
    assert max(ratios) <= 3 * min(ratios)
    assert max(ratios) < 1.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # forward mode, first use
def test_products_by_two_routes_and_their_cost() -> None:
    """S1-79, S2-19: double backward = forward over reverse = dense; S2-31: G v without a forward pass of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    loss_fn, x, y = nn.CrossEntropyLoss(), torch.randn(64, 30).double(), torch.arange(64) % 5
    H, G = pb.Hessian(model, loss_fn, (x, y)), pb.GaussNewton(model, loss_fn, (x, y))
    v = torch.randn(H.shape[1]).double()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    gradient = torch.func.grad(lambda w: loss_fn(H.view(x, w), y))
    _, forward_over_reverse = torch.func.jvp(gradient, (weights,), (H.view.unflatten(v),))
    assert_same(H @ v, H.view.flatten(forward_over_reverse), 1e-10)
    z, jv = torch.func.jvp(lambda w: H.view(x, w), (weights,), (H.view.unflatten(v),))
    curved = torch.func.jvp(torch.func.grad(lambda t: loss_fn(t, y)), (z,), (jv,))[1]
    pulled = torch.func.vjp(lambda w: H.view(x, w), weights)[1](curved)[0]
    assert_same(G @ v, H.view.flatten(pulled), 1e-10)

    def operations(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    forward = operations(lambda: model(x))
    plain = operations(lambda: torch.autograd.grad(loss_fn(model(x), y), list(model.parameters())))
    assert operations(lambda: H @ v) < 6 * forward
    assert operations(lambda: H @ v) <= 1.6 * plain
    assert operations(lambda: G @ v) <= 1.2 * plain
    assert operations(lambda: H @ torch.stack([v] * 5, 1)) == 5 * operations(lambda: H @ v)


def test_a_network_of_this_package() -> None:
    """The training note's network, through all operators."""
    model = MLP([4, 5, 5, 3], "tanh").double()
    data = torch.randn(6, 4).double(), torch.arange(6) % 3
    assert_same(pb.Hessian(model, each_loss, data).to_dense(), reference.dense_hessian(model, each_loss, *data), 1e-9)
    assert_different(
        pb.GaussNewton(model, each_loss, data).to_dense(), pb.Hessian(model, each_loss, data).to_dense(), 1e-3
    )


def each_loss(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")
