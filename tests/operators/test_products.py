"""Products with derivatives of plain functions, Taylor polynomials, and linearised models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pullback as pb
from pullback import reference
from tests.cases import CASES, build
from tests.compare import assert_different, assert_same
from tests.stacks.models import stack
from tests.thinned import thinned

VALUES = json.loads((Path(__file__).parents[1] / "data" / "taylor_curvature.json").read_text())
MODES = ("forward", "reverse")


def net(w: Tensor) -> Tensor:
    """A smooth function of a vector (8,) with four outputs, (2, 2)."""
    return torch.tanh(torch.tanh(w[:4].view(2, 2)) @ w[4:].view(2, 2)).exp()


def loss(w: Tensor) -> Tensor:
    return net(w).square().sum() + w.prod()


def vectors(*sizes: int, seed: int = 0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=make, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 1000))
def test_products_are_those_of_the_dense_derivatives(mode: str, seed: int) -> None:
    """S2-04, S2-09: J v forward and by two reverse products, J^T u, H v, G v, against entry-by-entry derivatives."""
    w, v, u = vectors(8, 8, 4, seed=seed)
    J, H = reference.dense_jacobian(net, w), reference.dense_second_derivative(loss, w)[0]
    assert_same(pb.jvp(net, w, v, mode=mode), (J @ v).view(2, 2), 1e-10)
    assert_same(pb.vjp(net, w, u.view(2, 2)), J.T @ u, 1e-10)
    assert_same(pb.hvp(loss, w, v, mode=mode), H @ v, 1e-10)
    output_loss = lambda z: (z**3).sum() + z[0, 0] * z[1, 1]
    H_z = reference.dense_second_derivative(lambda z: output_loss(z.view(2, 2)), net(w).reshape(-1))[0]
    found = pb.gauss_newton_vp(net, output_loss, w, v, mode=mode)
    assert_same(found, J.T @ (H_z @ (J @ v)), 1e-10)
    assert_different(pb.hvp(lambda w: output_loss(net(w)), w, v, mode=mode), found, 1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), a=st.floats(-2, 2))
def test_adjoint_and_linear(seed: int, a: float) -> None:
    w, v, x, u = vectors(8, 8, 8, 4, seed=seed)
    u = u.view(2, 2)
    assert_same((u * pb.jvp(net, w, v)).sum(), (pb.vjp(net, w, u) * v).sum(), 1e-10, scale=float(u.norm() * v.norm()))
    products: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: pb.jvp(net, w, v),
        lambda v: pb.hvp(loss, w, v),
        lambda v: pb.gauss_newton_vp(net, lambda z: z.square().sum(), w, v),
    )
    for product in products:
        expected = a * product(v) + product(x)
        assert_same(product(a * v + x), expected, 1e-10, scale=float(product(v).norm() + product(x).norm()) * 3)


def test_gradients_by_one_transposed_product() -> None:
    """S2-07, S2-06: J^T 1 is autograd's gradient, and a step against it is a step of gradient descent."""
    (w,) = vectors(8)
    g = pb.vjp(loss, w, torch.ones((), dtype=torch.float64))
    leaf = w.clone().requires_grad_()
    loss(leaf).backward()
    assert torch.equal(g, leaf.grad)
    optimizer = torch.optim.SGD([leaf], lr=0.01)
    optimizer.step()
    assert torch.equal(leaf.detach(), w - 0.01 * g)
    assert float(loss(w - 1e-3 * g)) < float(loss(w))


def test_directional_derivatives_are_difference_quotients() -> None:
    """S2-08: [f(w + h v) - f(w - h v)] / 2h = J v to 1e-7 (E2.2)."""
    w, v = vectors(8, 8)
    h = 1e-5
    assert_same(pb.jvp(net, w, v), (net(w + h * v) - net(w - h * v)) / (2 * h), 1e-7)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_remainders_of_taylor_polynomials(order: int) -> None:
    """S2-03, S2-11, S3-01: the error over |dw|^(order + 1) is bounded, and tends to that of the next term."""
    w, v = vectors(8, 8)
    v /= v.norm()
    for f in (net, loss):
        approximation = pb.taylor(f, w, order)
        sizes = (1e-1, 1e-2, 1e-3)
        ratios = [float((f(w + t * v) - approximation(w + t * v)).norm()) / t ** (order + 1) for t in sizes]
        along = lambda t, f=f: f(w + t * v)
        for _ in range(order + 1):
            along = _slope(along)
        next_term = float(along(torch.zeros((), dtype=torch.float64)).norm()) / math.factorial(order + 1)
        assert max(ratios) < 2 * next_term
        assert ratios[-1] == pytest.approx(next_term, rel=2e-2)


def _slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda t: pb.jvp(f, t, torch.ones_like(t))


@given(order=st.sampled_from([0, 1, 2]), seed=st.integers(0, 1000))
def test_taylor_polynomials_equal_the_dense_ones(order: int, seed: int) -> None:
    w0, w = vectors(8, 8, seed=seed)
    for f in (net, loss):
        found = pb.taylor(f, w0, order)(w)
        assert found.shape == f(w0).shape
        assert_same(found.reshape(-1), reference.taylor_polynomial(f, w0, w, order), 1e-10)


def test_taylor_polynomials_are_exact_for_polynomials_and_can_be_differentiated() -> None:
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    quadratic = lambda w: w @ A @ w / 2 + w.sum()
    w0, w = vectors(2, 2)
    approximation = pb.taylor(quadratic, w0, 2)
    assert_same(approximation(w), quadratic(w), 1e-12)
    assert_same(torch.func.grad(approximation)(w), A @ w + 1, 1e-12)
    w0.zero_()  # a copy was kept
    assert_same(approximation(w), quadratic(w), 1e-12)


def test_curvature_along_a_direction() -> None:
    """S2-12, S3-04: J(w + t v) = J + t g.v + t^2/2 v^T H v; the fitted coefficient of t^2 to 1e-6."""
    w, v = vectors(8, 8)
    v = 0.1 * v
    t = torch.linspace(-0.1, 0.1, 21, dtype=torch.float64)
    costs = torch.stack([loss(w + s * v) for s in t])
    powers = torch.stack([t**k for k in range(7)], dim=1)
    fitted = torch.linalg.lstsq(powers, costs.unsqueeze(1)).solution[:3, 0]
    curvature = v @ pb.hvp(loss, w, v)
    slope = pb.jvp(loss, w, v)
    assert fitted.tolist() == pytest.approx([float(loss(w)), float(slope), float(curvature) / 2], rel=1e-6)
    eigenvalues, eigenvectors = torch.linalg.eigh(reference.dense_second_derivative(loss, w)[0])
    for value, q in zip(eigenvalues, eigenvectors.T, strict=True):  # v^T H v of unit eigenvectors
        assert_same(q @ pb.hvp(loss, w, q), value, 1e-9, scale=float(eigenvalues.abs().max()))


def model_function(hidden: int, depth: int, n: int) -> tuple[Callable[..., Tensor], dict[str, Tensor], Tensor]:
    """A network as a function of its parameter dict, the dict, and labels."""
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(hidden, hidden), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(hidden, 4)).double()
    x = torch.randn(n, hidden, dtype=torch.float64)
    w = {name: p.detach() for name, p in model.named_parameters()}
    return lambda w: torch.func.functional_call(model, w, x), w, torch.randint(4, (n,))


def counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def cost_ratios(depth: int, n: int) -> dict[str, float]:
    """Counted operations of every product, over those of a forward pass."""
    f, w, y = model_function(8, depth, n)
    v = {name: torch.randn_like(p) for name, p in w.items()}
    u = torch.randn(n, 4, dtype=torch.float64)

    def output_loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, y)

    def cost(w: dict[str, Tensor]) -> Tensor:
        return output_loss(f(w))

    calls: dict[str, Callable[[], object]] = {
        "jvp": lambda: pb.jvp(f, w, v),
        "jvp twice reverse": lambda: pb.jvp(f, w, v, mode="reverse"),
        "vjp": lambda: pb.vjp(f, w, u),
        "hvp": lambda: pb.hvp(cost, w, v),
        "hvp reverse": lambda: pb.hvp(cost, w, v, mode="reverse"),
        "gauss-newton": lambda: pb.gauss_newton_vp(f, output_loss, w, v),
        "taylor 1": lambda: pb.taylor(f, w, 1)(v),
        "taylor 2": lambda: pb.taylor(f, w, 2)(v),
    }
    forward = counted(lambda: f(w))
    return {name: counted(call) / forward for name, call in calls.items()}


@pytest.mark.parametrize("depth", [2, 6])
def test_linear_cost(depth: int) -> None:
    """S2-10: J v and J^T u cost less than 5 forward passes, for any N; counted operations, not times.

    S1-79: H v costs less than 6 forward passes beyond the gradient that is made on the way. In all it is 9 for a
    linear layer: X W, X^T D and D W^T, each with two more products in its derivative along v.
    """
    found = cost_ratios(depth, 4)
    assert found == cost_ratios(depth, 16) == cost_ratios(depth, 64)
    assert found["jvp"] == 3
    assert found["jvp twice reverse"] < 5
    assert found["vjp"] < 3
    for mode in ("hvp", "hvp reverse"):
        assert found[mode] - found["vjp"] < 6
        assert found[mode] < 9
    assert found["gauss-newton"] < 5
    assert found["taylor 1"] == 1 + 3  # f(w0), and one evaluation
    assert found["taylor 2"] < 1 + 9


def test_gauss_newton_runs_the_network_forward_once() -> None:
    """S2-31: the seed's exercise: one forward pass, where jvp and vjp by themselves would make two."""
    f, w, y = model_function(8, 3, 5)
    v = {name: torch.randn_like(p) for name, p in w.items()}
    calls = []

    def watched(w: dict[str, Tensor]) -> Tensor:
        calls.append(1)
        return f(w)

    for mode in MODES:
        calls.clear()
        found = pb.gauss_newton_vp(watched, lambda z: F.cross_entropy(z, y), w, v, mode=mode)
        assert len(calls) == 1
        change = pb.jvp(f, w, v)
        bent = pb.hvp(lambda z: F.cross_entropy(z, y), f(w), change)
        expected = pb.vjp(f, w, bent)
        for name, part in found.items():
            assert_same(part, expected[name], 1e-10)
    once = counted(lambda: pb.gauss_newton_vp(f, lambda z: F.cross_entropy(z, y), w, v))
    apart = counted(lambda: pb.jvp(f, w, v)) + counted(lambda: pb.vjp(f, w, torch.ones(5, 4).double()))
    assert once == apart - counted(lambda: f(w))


@pytest.mark.parametrize("mode", MODES)
def test_nests_of_tensors(mode: str) -> None:
    """Dicts, tuples and lists in and out have the same derivatives as one flat vector."""
    w, v = vectors(8, 8)
    nest = lambda flat: {"b": flat[:4], "a": (flat[4:6], [flat[6:]])}
    flatten = lambda tree: torch.cat([tree["b"], tree["a"][0], tree["a"][1][0]])
    f = lambda tree: (net(flatten(tree)), {"sum": loss(flatten(tree))})
    change = pb.jvp(f, nest(w), nest(v), mode=mode)
    assert_same(change[0], pb.jvp(net, w, v), 1e-12)
    assert_same(change[1]["sum"], pb.jvp(loss, w, v), 1e-12)
    u = (torch.ones(2, 2).double(), {"sum": torch.tensor(2.0).double()})
    assert_same(flatten(pb.vjp(f, nest(w), u)), pb.vjp(net, w, u[0]) + 2 * pb.vjp(loss, w, u[1]["sum"] / 2), 1e-12)
    scalar = lambda tree: loss(flatten(tree))
    assert_same(flatten(pb.hvp(scalar, nest(w), nest(v), mode=mode)), pb.hvp(loss, w, v), 1e-12)
    assert_same(pb.taylor(scalar, nest(w), 2)(nest(v)), pb.taylor(loss, w, 2)(v), 1e-12)


@pytest.mark.parametrize("mode", thinned(MODES))
def test_fused_attention_inside(mode: str) -> None:
    """Second derivatives through scaled_dot_product_attention; the backend is restored."""
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == "sequence_first"), 2)
    w = {name: p.detach() for name, p in model.named_parameters()}
    flash = torch.backends.cuda.flash_sdp_enabled()

    def cost(w: dict[str, Tensor]) -> Tensor:
        return loss_fn(torch.func.functional_call(model, w, (x,)), y)

    H = reference.dense_hessian(model, loss_fn, x, y)
    (flat,) = vectors(len(H))
    view = pb.ModelView.of(model)
    found = pb.hvp(cost, w, view.unflatten(flat), mode=mode)
    assert_same(view.flatten(found), H @ flat, 1e-9)
    q, d = vectors(24, 24)

    def attend(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*q.view(3, 1, 1, 4, 2)).sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = reference.dense_second_derivative(attend, q)[0]
    assert_same(pb.hvp(attend, q, d, mode=mode), dense @ d, 1e-9)
    assert_same(pb.taylor(attend, q, 2)(q + d), attend(q) + pb.jvp(attend, q, d) + d @ dense @ d / 2, 1e-9)
    assert torch.backends.cuda.flash_sdp_enabled() == flash


@pytest.mark.parametrize("mode", MODES)
def test_hugging_face_gpt2(mode: str) -> None:
    """A parameter dict of a third party's model, with tied embeddings and fused attention."""
    model, loss_fn, x, y = stack("gpt2-sdpa").build(2)
    view = pb.ModelView.of(model)
    w = {name: p.detach() for name, p in view.parameters.items()}
    (flat,) = vectors(view.num_params)
    flat /= flat.norm()

    def cost(w: dict[str, Tensor]) -> Tensor:
        return loss_fn(view(x, w), y).mean()

    found = view.flatten(pb.hvp(cost, w, view.unflatten(flat), mode=mode))
    assert_same(found, pb.Hessian(model, loss_fn, (x, y)) @ flat, 1e-10)
    h = 1e-4  # and by gradients alone
    ones = torch.ones((), dtype=torch.float64)
    sides = [
        view.flatten(pb.vjp(cost, {n: p + s * h * view.unflatten(flat)[n] for n, p in w.items()}, ones))
        for s in (1, -1)
    ]
    assert_same(found, (sides[0] - sides[1]) / (2 * h), 1e-5)


def test_scalars_keep_their_dtype() -> None:
    """Torch's forward derivative of a float32 scalar may come in float64."""
    w, v = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0])
    f = lambda w: w[1] * torch.tanh(1.5 * w[0])
    found = [pb.jvp(f, w, v), pb.hvp(f, w, v), pb.taylor(f, w, 1)(w + v), pb.taylor(f, w, 2)(w + v)]
    assert [t.dtype for t in found] == [torch.float32] * 4


def test_the_tiny_network_s_numbers() -> None:
    """S1-44, S1-45: f = w2 tanh(w1 x): G and H by products; the linearised curve's second derivative is G."""
    tiny = VALUES["tiny_tanh_net"]
    w = torch.tensor(tiny["w"], dtype=torch.float64)
    f = lambda w: w[1] * torch.tanh(w[0] * tiny["x"])
    half_square = lambda z: (z - tiny["t"]) ** 2 / 2
    eye = torch.eye(2, dtype=torch.float64)
    G = torch.stack([pb.gauss_newton_vp(f, half_square, w, e) for e in eye])
    H = torch.stack([pb.hvp(lambda w: half_square(f(w)), w, e) for e in eye])
    assert_same(G, torch.tensor(tiny["gauss_newton"], dtype=torch.float64), 1e-12)
    assert_same(H, torch.tensor(tiny["hessian"], dtype=torch.float64), 1e-12)
    linear = pb.taylor(f, w, 1)
    curve = lambda w: half_square(linear(w))
    assert_same(torch.stack([pb.hvp(curve, w, e) for e in eye]), G, 1e-12)
    assert_same(torch.stack([pb.hvp(curve, w + 1, e) for e in eye]), G, 1e-12)  # a quadratic: the same everywhere


@pytest.mark.parametrize("name", ["mlp", "conv2d", "tied", "frozen", "two_inputs", "sequence_first", "recurrent"])
def test_linearized_models(name: str) -> None:
    """S2-30: f_lin agrees to first order; the Hessian of its loss at w0 is the model's Gauss-Newton matrix."""
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == name), 3)
    f_lin, view = pb.linearize(model), pb.ModelView.of(model)
    call = pb.ModelView.of(f_lin)
    assert [p[len("model.") :] for p in call.parameters] == list(view.parameters)
    assert_same(call(x).detach(), view(x).detach(), 1e-12)
    G = reference.dense_gauss_newton(model, loss_fn, x, y)
    assert_same(pb.Hessian(f_lin, loss_fn, (x, y)).to_dense(), G, 1e-9)
    J = reference.output_gradients(model, x).flatten(0, 1)
    (step,) = vectors(view.num_params)
    moved = {f"model.{n}": p + view.unflatten(step)[n] for n, p in view.parameters.items()}
    assert_same(call(x, moved).reshape(-1).detach(), view(x).reshape(-1).detach() + J @ step, 1e-10)
    with torch.no_grad():
        for n, p in f_lin.named_parameters():
            p.copy_(moved.get(n, p))
    assert_same(pb.Jacobian(f_lin, x).to_dense(), J, 1e-10)  # the Jacobian stays where the weights move
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build_again(name).parameters(), strict=True))


def build_again(name: str) -> nn.Module:
    return build(next(c for c in CASES if c.name == name), 3)[0]


def test_linearized_models_are_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Tanh(), nn.Linear(3, 1))
    with pytest.raises(pb.UnsupportedError, match=r"linearize: expected a model in eval mode, got `1` \(Dropout\) in"):
        pb.linearize(model)
    f_lin = pb.linearize(model.eval())
    assert f_lin.train().training
    assert not f_lin.model[1].training
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    optimizer = torch.optim.SGD(f_lin.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        cost = F.mse_loss(f_lin(x), y)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        losses.append(float(cost.detach()))
    assert losses == sorted(losses, reverse=True)
    again = pb.linearize(model)
    again.load_state_dict(f_lin.state_dict())
    assert_same(again(x).detach(), f_lin(x).detach())  # a batch that comes again goes another way
    assert f_lin.double()(x.double()).dtype == torch.float64


class Halved(torch.autograd.Function):
    """An operation without forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z / 2

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> Tensor:
        return slope / 2


def test_operations_without_forward_derivative_are_named() -> None:
    w, v = vectors(3, 3)
    f = lambda w: Halved.apply(w).square().sum()
    calls: tuple[tuple[str, Callable[..., Tensor]], ...] = (
        ("jvp", lambda **mode: pb.jvp(f, w, v, **mode)),
        ("hvp", lambda **mode: pb.hvp(f, w, v, **mode)),
        ("gauss_newton_vp", lambda **mode: pb.gauss_newton_vp(Halved.apply, lambda z: z.square().sum(), w, v, **mode)),
    )
    for (name, call), expected in zip(calls, ((w @ v) / 2, v / 2, v / 2), strict=True):
        with pytest.raises(pb.UnsupportedError, match=f"{name}: expected operations with a forward derivative, got .*"):
            call()
        assert_same(call(mode="reverse"), expected, 1e-12)
    with pytest.raises(pb.UnsupportedError, match="taylor: expected operations with a forward derivative"):
        pb.taylor(f, w, 2)(v)


def test_wrong_arguments_are_refused() -> None:
    w = torch.ones(3)
    f = lambda w: w * 2
    with pytest.raises(pb.InputError, match="jvp: expected `mode` to be one of 'forward', 'reverse', got 'both'"):
        pb.jvp(f, w, w, mode="both")
    with pytest.raises(
        pb.InputError, match=r"jvp: expected `v` shaped like `w`, \(3,\), torch.float32 on cpu, got \(2,"
    ):
        pb.jvp(f, w, torch.ones(2))
    with pytest.raises(pb.InputError, match=r"hvp: expected `v` shaped like `w`, .*, got \(3,\), torch.float64 on cpu"):
        pb.hvp(lambda w: w.sum(), w, w.double())
    with pytest.raises(pb.InputError, match=r"vjp: expected `u` shaped like `f\(w\)`, \(3,\)"):
        pb.vjp(f, w, torch.ones(1))
    with pytest.raises(pb.InputError, match="jvp: expected `v` nested as `w`, .* Use the same names and order"):
        pb.jvp(f, {"a": w}, {"b": w})
    with pytest.raises(pb.InputError, match="vjp: expected `w` as a floating tensor, .*, got torch.int64"):
        pb.vjp(f, torch.ones(3, dtype=torch.long), w)
    with pytest.raises(pb.InputError, match="jvp: expected `v` as a floating tensor, .*, got nothing"):
        pb.jvp(f, w, [[]])
    with pytest.raises(pb.InputError, match="jvp: expected `v` as a floating tensor, .*, got int"):
        pb.jvp(f, w, [1])
    with pytest.raises(pb.InputError, match=r"jvp: expected `f\(w\)` as a floating tensor, .*, got float"):
        pb.jvp(lambda w: 1.0, w, w)
    with pytest.raises(
        pb.InputError, match=r"hvp: expected a scalar tensor from `loss`, got shape \(3,\). Take the mean"
    ):
        pb.hvp(f, w, w)
    with pytest.raises(pb.InputError, match="gauss_newton_vp: expected a scalar tensor from `loss`, got float"):
        pb.gauss_newton_vp(f, lambda z: 1.0, w, w)
    with pytest.raises(pb.InputError, match="taylor: expected `order` to be one of 0, 1, 2, got 3"):
        pb.taylor(f, w, 3)
    with pytest.raises(pb.InputError, match=r"taylor: expected `w` shaped like `w0`, \(3,\)"):
        pb.taylor(f, w, 1)(torch.ones(2))
