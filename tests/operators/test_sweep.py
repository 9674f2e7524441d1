"""Every product of every torch function and loss: right against plain first derivatives, or refused by name.

The truth takes no derivative twice: Jacobians by one backward pass an output of single samples, second derivatives by
central differences of those, in float64. Errors of differences: h^2 / 6 times fourth derivatives with h = 1e-4 of
numbers near one, and eps / h from rounding, 1e-12.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional import output_hessian
from tests.compare import assert_same
from tests.operators.sweep import FORWARD, GRADIENT_FORWARD, REFUSED, ROWS, Function
from tests.thinned import thinned

N = 2
STEP = 1e-4
BY_DIFFERENCES = 1e-5


class Scaled(nn.Module):
    """f of samples times a parameter: as many parameters as a sample has numbers."""

    def __init__(self, f: Function, scale: Tensor) -> None:
        super().__init__()
        self.f, self.scale = f, nn.Parameter(scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x * self.scale).reshape(len(x), -1)


def made(name: str) -> tuple[nn.Module, Tensor]:
    shape, f = ROWS[name]
    make = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    x = torch.randn(N, *shape, generator=make, dtype=torch.float64)
    return Scaled(f, torch.randn(shape, generator=make, dtype=torch.float64)), x


def jacobians(model: nn.Module, x: Tensor) -> Tensor:
    """(N, C, P), from plain autograd on single samples."""
    parameters = list(model.parameters())
    rows = []
    for one in x.split(1):
        outputs = model(one)[0]
        each = [
            torch.autograd.grad(z, parameters, retain_graph=True, materialize_grads=True)
            if z.requires_grad
            else [torch.zeros_like(p) for p in parameters]
            for z in outputs
        ]
        rows.append(torch.stack([torch.cat([g.reshape(-1) for g in grads]) for grads in each]))
    return torch.stack(rows)


def differences(of: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Tensor:
    """Derivative (..., P) of a quantity in the parameters, by central differences."""
    columns = []
    for p in parameters:
        for place in range(p.numel()):
            flat, two = p.detach().view(-1), []
            start = float(flat[place])
            for h in (STEP, -STEP):
                flat[place] = start + h
                two.append(of().detach())
            flat[place] = start
            columns.append((two[0] - two[1]) / (2 * STEP))
    return torch.stack(columns, -1)


def gradient(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Gradients of single samples' losses, (N, P)."""
    parameters, rows = list(model.parameters()), []
    for one, target in zip(x.split(1), y.split(1), strict=True):
        loss = loss_fn(model(one), target).sum()
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True) if loss.requires_grad else None
        rows.append(torch.cat([g.reshape(-1) for g in grads or [torch.zeros_like(p) for p in parameters]]))
    return torch.stack(rows)


def squares(z: Tensor) -> Tensor:
    return z.square().sum()


def right_or_refused(product: Callable[[], Tensor], expected: Tensor, tolerance: float, refused: bool = False) -> None:
    """``refused`` says which; a refusal is one of this package's errors."""
    if refused:
        with pytest.raises(pb.UnsupportedError, match="expected .* got .*"):
            product()
        return
    found = product().detach().reshape(expected.shape)
    assert_same(found, expected, tolerance)


def once_only(name: str) -> bool:
    """Whether this torch has no second derivative of an operation: 2.6 has none of grid_sample."""
    if name != "grid_sample":
        return False
    model, x = made(name)
    (slope,) = torch.autograd.grad(model(x).sum(), [model.scale], create_graph=True)
    try:
        slope.sum().backward()
    except RuntimeError as error:
        return "is not implemented" in str(error)
    return False


@pytest.mark.parametrize("name", thinned(tuple(ROWS)))
def test_operators(name: str) -> None:
    model, x = made(name)
    y = torch.zeros_like(model(x)).detach() + 0.3
    loss_fn, data = nn.MSELoss(), (x, y)
    makers = {
        "Hessian": lambda: pb.Hessian(model, loss_fn, data),
        "GaussNewton": lambda: pb.GaussNewton(model, loss_fn, data),
        "true Fisher": lambda: pb.Fisher(model, loss_fn, data),
        "empirical Fisher": lambda: pb.Fisher(model, loss_fn, data, kind="empirical"),
        "Jacobian": lambda: pb.Jacobian(model, x),
    }
    if once_only(name):
        with pytest.raises(
            pb.UnsupportedError, match="Hessian: expected operations that torch can differentiate twice"
        ):
            makers["Hessian"]().to_dense()
        return
    if name in REFUSED:
        for make in makers.values():
            with pytest.raises(pb.UnsupportedError, match="expected .* got .*"):
                make()
        return
    J, g = jacobians(model, x), gradient(model, loss_fn, x, y)
    C = J.shape[1]
    gauss_newton = torch.einsum("icp,icq->pq", J, J) * 2 / (C * N)
    hessian = differences(lambda: gradient(model, loss_fn, x, y).mean(0), list(model.parameters()))
    expected = {
        "Hessian": hessian,
        "GaussNewton": gauss_newton,
        "true Fisher": gauss_newton,
        "empirical Fisher": g.T @ g / N,
        "Jacobian": J.flatten(0, 1),
    }
    v, u = torch.randn(J.shape[2]).double(), torch.randn(N * C, 2).double()
    for product, make in makers.items():
        op, dense = make(), expected[product]
        tolerance = BY_DIFFERENCES if product == "Hessian" else 1e-9
        size = float(dense.abs().max())
        assert_same(op.to_dense(), dense, tolerance)
        assert_same(op @ v, dense @ v, tolerance, scale=size)  # a single vector goes another way than several
        if product == "Jacobian":
            assert_same(op.T @ u, dense.T @ u, tolerance, scale=size)
            assert_same(op @ torch.stack([v, 2 * v], 1), dense @ torch.stack([v, 2 * v], 1), tolerance, scale=size)


@pytest.mark.parametrize("name", thinned(tuple(ROWS)))
def test_functions(name: str) -> None:
    """jvp, vjp, hvp, gauss_newton_vp and taylor, of one vector of parameters."""
    model, x = made(name)
    scale = model.scale.detach().clone()
    if once_only(name):
        with pytest.raises(pb.UnsupportedError, match="hvp: expected operations that torch can differentiate twice"):
            pb.hvp(lambda w: ROWS[name][1](x * w).sum(), scale, torch.ones_like(scale), mode="reverse")
        return
    J = jacobians(model, x).flatten(0, 1)
    u, v = torch.randn(len(J)).double(), torch.randn_like(scale)
    bends = differences(lambda: jacobians(model, x).flatten(0, 1), list(model.parameters()))  # (N C, P, P)

    def f(w: Tensor) -> Tensor:
        return ROWS[name][1](x * w).reshape(-1)

    def loss(w: Tensor) -> Tensor:
        return f(w) @ u

    with torch.no_grad():
        value = f(scale)
    flat = v.reshape(-1)
    forward, refused = name in FORWARD or name in REFUSED, name in REFUSED
    Jv, Hv = J @ flat, torch.einsum("c,cpq,q->p", u, bends, flat).view_as(v)
    gauss_newton = (2 * J.T @ Jv).view_as(v)
    for mode, no in (("forward", forward), ("reverse", refused)):
        right_or_refused(partial(pb.jvp, f, scale, v, mode=mode), Jv, 1e-9, no)
        bent = no or (mode == "forward" and name in GRADIENT_FORWARD)
        right_or_refused(partial(pb.hvp, loss, scale, v, mode=mode), Hv, BY_DIFFERENCES, bent)
        right_or_refused(partial(pb.gauss_newton_vp, f, squares, scale, v, mode=mode), gauss_newton, 1e-9, no)
    right_or_refused(lambda: pb.vjp(f, scale, u), (J.T @ u).view_as(v), 1e-9, refused)
    step = 0.1 * v
    cubic = value + 0.1 * Jv + 0.005 * torch.einsum("cpq,p,q->c", bends, flat, flat)
    right_or_refused(lambda: pb.taylor(f, scale, 2)(scale + step), cubic, BY_DIFFERENCES, forward)


def _ctc(z: Tensor, y: Tensor) -> Tensor:
    steps = torch.full((len(z),), z.shape[1])
    labels = (y > 0).sum(1)
    return F.ctc_loss(z.log_softmax(2).transpose(0, 1), y, steps, labels, reduction="none")


def _triplet(z: Tensor, y: Tensor) -> Tensor:
    return F.triplet_margin_loss(z, y, y.sin(), reduction="none")


CLASSES = torch.tensor([1, 2])
REAL = torch.tensor([[0.3, -1.2, 0.8], [1.5, 0.2, -0.4]], dtype=torch.float64)
LOSSES: dict[str, tuple[tuple[int, ...], Callable[..., Tensor], Tensor]] = {
    "cross entropy": ((3,), nn.CrossEntropyLoss(weight=REAL[0].exp()), CLASSES),
    "label smoothing": ((3,), nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "soft targets": ((3,), nn.CrossEntropyLoss(), REAL.softmax(1)),
    "nll": ((3,), lambda z, y: F.nll_loss(z.log_softmax(1), y, reduction="none"), CLASSES),
    "bce": ((3,), lambda z, y: F.binary_cross_entropy(z.sigmoid(), y, reduction="none").sum(1), REAL.sigmoid()),
    "bce logits": ((3,), nn.BCEWithLogitsLoss(pos_weight=REAL[0].exp()), REAL.sigmoid()),
    "mse": ((3,), nn.MSELoss(), REAL),
    "l1": ((3,), nn.L1Loss(), REAL),
    "smooth l1": ((3,), nn.SmoothL1Loss(), REAL),
    "huber": ((3,), nn.HuberLoss(delta=0.7), REAL),
    "poisson": ((3,), nn.PoissonNLLLoss(), REAL.exp()),
    "kl": ((3,), lambda z, y: F.kl_div(z.log_softmax(1), y, reduction="none").sum(1), REAL.softmax(1)),
    "gaussian nll": ((3,), lambda z, y: F.gaussian_nll_loss(z, y, z.exp(), reduction="none").sum(1), REAL),
    "multi margin": ((3,), nn.MultiMarginLoss(), CLASSES),
    "multi margin squared": ((3,), nn.MultiMarginLoss(p=2, margin=1.5, weight=REAL[1].exp()), CLASSES),
    "multilabel margin": ((3,), nn.MultiLabelMarginLoss(), torch.tensor([[2, 0, -1], [1, -1, 0]])),
    "multilabel soft margin": ((3,), nn.MultiLabelSoftMarginLoss(), (REAL > 0).double()),
    "soft margin": ((3,), nn.SoftMarginLoss(), REAL.sign()),
    "hinge embedding": ((3,), nn.HingeEmbeddingLoss(), REAL.sign()),
    "margin ranking": ((3,), lambda z, y: F.margin_ranking_loss(z, 0 * z, y, reduction="none").sum(1), REAL.sign()),
    "cosine embedding": ((3,), lambda z, y: 1 - F.cosine_similarity(z, y), REAL),
    "triplet": ((3,), _triplet, REAL),
    "ctc": ((4, 3), _ctc, torch.tensor([[1, 2], [2, 0]])),
    "ctc repeated": ((4, 3), _ctc, torch.tensor([[1, 1], [2, 1]])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    shape, loss_fn, y = LOSSES[name]
    size = int(torch.tensor(shape).prod())
    model = nn.Sequential(nn.Linear(2, size), nn.Tanh(), nn.Unflatten(1, shape)).double()
    x, parameters = torch.randn(N, 2).double(), list(model.parameters())

    def one(z: Tensor, target: Tensor) -> Tensor:
        return loss_fn(z, target).sum()

    def slopes(z: Tensor) -> Tensor:
        return torch.stack(
            [torch.autograd.grad(one(a[None], t[None]), z)[0][i] for i, (a, t) in enumerate(zip(z, y, strict=True))]
        )

    outputs = nn.Parameter(model(x).detach())
    H_z = differences(lambda: slopes(outputs).flatten(1), [outputs]).view(N, size, N, size)
    flat = nn.Sequential(*model[:2])
    J = jacobians(flat, x)
    bend = torch.stack([H_z[i, :, i] for i in range(N)])
    gauss_newton = torch.einsum("icp,ice,ieq->pq", J, bend, J) / N
    g = gradient(model, loss_fn, x, y)
    hessian = differences(lambda: gradient(model, loss_fn, x, y).mean(0), parameters)
    v, data = torch.randn(len(hessian)).double(), (x, y)
    assert_same(pb.Hessian(model, loss_fn, data).to_dense(), hessian, BY_DIFFERENCES)
    assert_same(pb.Hessian(model, loss_fn, data) @ v, hessian @ v, BY_DIFFERENCES)
    assert_same(pb.GaussNewton(model, loss_fn, data).to_dense(), gauss_newton, BY_DIFFERENCES)
    assert_same(pb.GaussNewton(model, loss_fn, data) @ v, gauss_newton @ v, BY_DIFFERENCES)
    assert_same(pb.Fisher(model, loss_fn, data, kind="empirical").to_dense(), g.T @ g / N, 1e-9)
    assert_same(output_hessian(loss_fn, outputs.detach(), y), bend, BY_DIFFERENCES)

    def of(z: Tensor) -> Tensor:
        return torch.stack([one(a[None], t[None]) for a, t in zip(z, y, strict=True)]).sum()

    along = torch.randn_like(outputs).detach()
    expected = torch.einsum("ice,ie->ic", bend, along.flatten(1)).view_as(along)
    for mode in ("forward", "reverse"):
        assert_same(pb.hvp(of, outputs.detach(), along, mode=mode), expected, BY_DIFFERENCES)


# --- points where torch's own derivatives are nan, or other numbers


def test_determinants_where_singular_values_coincide() -> None:
    """At the unit matrix d2 det (V, V) = tr(V)^2 - tr(V V); at a singular one the derivative is that of cofactors."""
    for size in (2, 3, 4):
        unit, V = torch.eye(size).double(), torch.randn(size, size).double()
        for mode in ("forward", "reverse"):
            assert_same(pb.hvp(torch.det, unit, V, mode=mode), V.trace() * unit - V.T, 1e-9)
        bend = pb.jvp(lambda w, V=V: pb.jvp(torch.det, w, V), unit, V)
        assert_same(bend, V.trace() ** 2 - (V @ V).trace(), 1e-9)
        singular = torch.arange(size * size).double().view(size, size) / size  # rank 2
        by_rows = differences(lambda w=singular, V=V: pb.jvp(torch.det, w, V), [nn.Parameter(singular)])
        assert_same(pb.hvp(torch.det, singular, V), by_rows.view(size, size), 1e-6, scale=float(V.norm() ** (size - 1)))


def test_sign_of_determinants() -> None:
    from pullback.functional.elementary.algebra import det, slogdet

    A = torch.randn(40, 5, 5).double()
    assert_same(det(A), torch.det(A), 1e-12)
    assert bool((slogdet(A).sign == torch.linalg.slogdet(A).sign).all())


class Broken(torch.autograd.Function):
    """A square whose backward pass hides that it depends on what is passed back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * u.detach()


class Once(Broken):
    """The same, and says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * u


class Squares(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.body, self.function = nn.Linear(3, 4), function

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.function.apply(h) + h


@pytest.mark.parametrize("function", [Broken, Once])
def test_products_that_need_first_derivatives_go_by_rows(function: type[torch.autograd.Function]) -> None:
    model, x, y = Squares(function).double(), torch.randn(N, 3).double(), torch.randn(N, 4).double()
    J, loss_fn, data = jacobians(model, x), nn.MSELoss(), (x, y)
    gauss_newton, v = torch.einsum("icp,icq->pq", J, J) / (2 * N), torch.randn(J.shape[2]).double()
    for op, dense in (
        (pb.GaussNewton(model, loss_fn, data), gauss_newton),
        (pb.Fisher(model, loss_fn, data), gauss_newton),
        (pb.Jacobian(model, x), J.flatten(0, 1)),
    ):
        assert_same(op @ v, dense @ v)
        assert_same(op.to_dense(), dense)
        assert_same(op @ torch.stack([v, -v], 1), dense @ torch.stack([v, -v], 1))


class Crossed(torch.autograd.Function):
    """A product of two tensors with a backward pass that forgets one of the factors."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return u * b.detach(), u * a


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Crossed.apply(self.a(x), self.b(x))


def test_hessians_that_need_a_missing_derivative_are_refused() -> None:
    data = torch.randn(N, 3), torch.randn(N, 4)
    for model, match in (
        (Squares(Once), "operations that torch can differentiate twice, got OnceBackward"),
        (Squares(Broken), "operations that torch can differentiate twice, got BrokenBackward"),
        (Product(), "a symmetric matrix, got u.T H v and v.T H u that differ by"),
    ):
        op = pb.Hessian(model, nn.MSELoss(), data)
        for K in (1, 2):
            with pytest.raises(pb.PullbackError, match=match):
                op @ torch.randn(op.shape[1], K)


def test_products_that_are_not_finite_are_refused() -> None:
    normed = Scaled(lambda x: F.normalize(0 * x), torch.ones(3))
    data = torch.rand(N, 3), torch.randn(N, 3)
    with pytest.raises(pb.UnsupportedError, match="Hessian: expected derivatives that are finite numbers, got nan"):
        pb.Hessian(normed, nn.MSELoss(), data).to_dense()
    J = pb.Jacobian(Scaled(lambda x: (0 * x).sqrt(), torch.ones(3)), data[0])
    with pytest.raises(pb.UnsupportedError, match="Jacobian: expected derivatives that are finite numbers"):
        J @ torch.ones(3)


class Scripted(nn.Module):
    """Weight norm inside TorchScript, where no call of it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.ones(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch._weight_norm(self.v, self.g, 0).t()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_scripted_operations_with_wrong_derivatives_are_refused() -> None:
    model = torch.jit.script(Scripted())
    op = pb.Hessian(model, nn.MSELoss(), (torch.randn(N, 3), torch.randn(N, 2)))
    with pytest.raises(pb.UnsupportedError, match="Hessian: expected operations that torch differentiates rightly"):
        op @ torch.ones(op.shape[1])
