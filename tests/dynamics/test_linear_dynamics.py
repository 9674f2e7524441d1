"""Closed forms against descent that is simulated: S4-07 and S4-10 of linearised models, step by step in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor, nn

import pullback as pb

STEPS = 1000
F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F64)


def features(samples: int, outputs: int, seed: int, parameters: int = 30) -> Tensor:
    """Jacobian of a linear model, (N, C, P)."""
    return drawn(samples, outputs, parameters, seed=seed)


def gram(left: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("icp,jep->ijce", left, right)


def simulated(
    J: Tensor, J2: Tensor, start: Tensor, start2: Tensor, loss: Any, lr: float, momentum: float, steps: int
) -> tuple[Tensor, Tensor]:
    """torch.optim.SGD on the parameters of the linear model, whose outputs are start + J w."""
    w = torch.zeros(J.shape[2], dtype=F64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr, momentum=momentum)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(start + J @ w).backward()
        optimizer.step()
    w = w.detach()
    return start + J @ w, start2 + J2 @ w


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("samples", "outputs"), [(7, 1), (5, 3), (12, 4)])  # the last has more outputs than parameters
def test_closed_form_is_simulated_descent(samples: int, outputs: int, momentum: float) -> None:
    J, J2 = features(samples, outputs, 0), features(4, outputs, 1)
    y, start, start2 = drawn(samples, outputs), drawn(samples, outputs, seed=5), drawn(4, outputs, seed=6)
    options: dict[str, Any] = {"cross": gram(J2, J), "initial": start, "cross_initial": start2, "momentum": momentum}
    limit = pb.linear_dynamics(gram(J, J), y, time=0, **options).max_lr
    steps = [0, 1, 2, 17, STEPS if outputs == 3 else 60]
    found = pb.linear_dynamics(gram(J, J), y, lr=0.7 * limit, time=steps, **options)
    assert isinstance(found, pb.Dynamics)
    assert found.stable
    assert found.excess == pytest.approx(0.7)
    for place, count in enumerate(steps):
        train, test = simulated(
            J, J2, start, start2, lambda f: (f - y).square().mean() / 2, 0.7 * limit, momentum, count
        )
        torch.testing.assert_close(found.train[place], train, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.test[place], test, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_largest_stable_rate_is_where_descent_begins_to_grow(momentum: float) -> None:
    J, y = features(6, 2, 3), drawn(6, 2)
    kernel = gram(J, J)
    limit = pb.linear_dynamics(kernel, y, time=0, momentum=momentum).max_lr
    size = y.abs().max()
    for share, grows in ((0.99, False), (1.01, True)):
        found = pb.linear_dynamics(kernel, y, lr=share * limit, time=3000, momentum=momentum)
        assert found.stable is not grows
        assert bool((found.train - y).abs().max() > 10 * size) is grows
    assert str(found).endswith("NOT STABLE: 1.01 times that")
    assert "NOT" not in str(pb.linear_dynamics(kernel, y, lr=0.5 * limit, time=1))
    assert pb.linear_dynamics(kernel * 0, y, lr=5.0, time=10).max_lr == math.inf


def test_a_shared_kernel_is_that_of_each_output() -> None:
    K, K2 = gram(*[features(6, 1, 2)] * 2)[:, :, 0, 0], gram(features(3, 1, 9), features(6, 1, 2))[:, :, 0, 0]
    y, eye = drawn(6, 2, 2), torch.eye(4, dtype=F64)
    for options in ({"time": [0.5, 3.0]}, {"lr": 0.1, "time": [3, 40], "momentum": 0.3}):
        one = pb.linear_dynamics(K, y, cross=K2, **options)
        full = pb.linear_dynamics(K[:, :, None, None] * eye, y, cross=K2[:, :, None, None] * eye, **options)
        assert one.train.shape == (2, 6, 2, 2)
        assert one.test.shape == (2, 3, 2, 2)
        torch.testing.assert_close(one.train, full.train)
        torch.testing.assert_close(one.test, full.test)
        assert one.max_lr == pytest.approx(full.max_lr)


def test_gradient_flow_is_a_matrix_exponential() -> None:
    J, y, start = features(6, 1, 4), drawn(6), drawn(6, seed=2)
    K, t = gram(J, J)[:, :, 0, 0], 1.7
    decay = torch.from_numpy(expm(-K.numpy() * t / 6))
    found = pb.linear_dynamics(K, y, initial=start, time=t)
    torch.testing.assert_close(found.train, y + decay @ (start - y))
    assert found.lr is None
    assert found.stable
    fast = pb.linear_dynamics(K, y, initial=start, time=0.5 * t, momentum=0.5)
    torch.testing.assert_close(fast.train, found.train)
    small = pb.linear_dynamics(K, y, initial=start, lr=1e-5, time=round(0.5 * t / 1e-5), momentum=0.5)
    torch.testing.assert_close(small.train, fast.train, rtol=1e-4, atol=1e-4)  # what flow with momentum means


def test_the_end_of_training() -> None:
    """At time infinity training outputs are the targets' projection, and others follow from them."""
    J, J2, y = features(12, 1, 5, parameters=5), features(3, 1, 6, parameters=5), drawn(12)
    K, K2 = (gram(a, J)[:, :, 0, 0] for a in (J, J2))
    found = pb.linear_dynamics(K, y, cross=K2)
    w = torch.linalg.lstsq(J[:, 0], y[:, None]).solution
    torch.testing.assert_close(found.train, (J[:, 0] @ w)[:, 0])
    torch.testing.assert_close(found.test, (J2[:, 0] @ w)[:, 0])
    late = pb.linear_dynamics(K, y, cross=K2, lr=found.max_lr / 2, time=[10**6, math.inf], momentum=0.4)
    torch.testing.assert_close(late.test[0], found.test)
    torch.testing.assert_close(late.test[1], found.test)


def test_modes_next_to_zero_lose_no_digits() -> None:
    """s of an eigenvalue of 1e-13 is the time, to all digits; 1 - (1 - x)^k divided by x would keep three."""
    K = torch.diag(torch.tensor([1.0, 1e-13], dtype=F64))
    y = torch.tensor([0.0, 1.0], dtype=F64)
    cross = torch.tensor([[0.0, 1.0]], dtype=F64)
    for options, expected in (
        ({"time": 10.0}, 5.0), ({"lr": 0.5, "time": 20}, 5.0), ({"lr": 0.25, "time": 4000, "momentum": 0.5}, 999.75),
    ):  # fmt: skip
        found = pb.linear_dynamics(K, y, cross=cross, **options)
        assert float(found.test) == pytest.approx(expected, rel=1e-9), options


LOSSES: dict[str, Any] = {
    "cross-entropy": (nn.CrossEntropyLoss(), torch.tensor([0, 2, 1, 1, 0])),
    "binary": (nn.BCEWithLogitsLoss(), (drawn(5, 3, seed=3) > 0).double()),
    "callable": (lambda f, y: (f - y).abs().pow(3).sum(1), drawn(5, 3, seed=4)),
    "squared by module": (nn.MSELoss(), drawn(5, 3, seed=4)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_other_losses_are_simulated_descent(name: str) -> None:
    loss, y = LOSSES[name]
    J, J2 = features(5, 3, 7), features(2, 3, 8)
    start, start2 = drawn(5, 3), drawn(2, 3)
    options: dict[str, Any] = {"cross": gram(J2, J), "initial": start, "cross_initial": start2, "loss": loss}
    lr = 0.2 * pb.linear_dynamics(gram(J, J), y, time=0, **options).max_lr

    def mean(f: Tensor) -> Tensor:
        found = loss(f, y)
        return found.mean()

    found = pb.linear_dynamics(gram(J, J), y, lr=lr, time=[3, 60], momentum=0.5, **options)
    for place, steps in enumerate((3, 60)):
        train, test = simulated(J, J2, start, start2, mean, lr, 0.5, steps)
        torch.testing.assert_close(found.train[place], train, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.test[place], test, rtol=1e-9, atol=1e-9)
    flow = pb.linear_dynamics(gram(J, J), y, time=[20 * lr, 0.0, 8 * lr], **options)
    fine = [simulated(J, J2, start, start2, mean, lr / k, 0.0, 20 * k)[1] for k in (8, 16)]
    expected = 2 * fine[1] - fine[0]  # steps are off by their size: extrapolated, by its square
    assert 0 < flow.error < 1e-6
    torch.testing.assert_close(flow.test[0], expected, rtol=0, atol=3e-3)
    torch.testing.assert_close(flow.train[1], start)


def test_outputs_start_at_zero_for_classes_too() -> None:
    """Classes are not shaped like outputs: the kernel says how many there are."""
    loss, y = LOSSES["cross-entropy"]
    K = gram(features(5, 3, 7), features(5, 3, 7))
    zero, found = (
        pb.linear_dynamics(K, y, lr=0.1, time=5, loss=loss, **o).train for o in ({"initial": drawn(5, 3) * 0}, {})
    )
    assert torch.equal(zero, found)
    with pytest.raises(pb.InputError, match=r"linear_dynamics: expected `initial` beside classes and .*, got None"):
        pb.linear_dynamics(K[:, :, 0, 0], y, loss=loss, time=1.0)


def test_integrated_squared_loss_is_the_closed_form() -> None:
    """The integrator against the closed form; MSELoss is twice the loss that "squared" means."""
    J, J2, y = features(6, 2, 9), features(3, 2, 1), drawn(6, 2)
    closed = pb.linear_dynamics(gram(J, J), y, cross=gram(J2, J), time=[2.0, 6.0])
    found = pb.linear_dynamics(gram(J, J), y, cross=gram(J2, J), time=[1.0, 3.0], loss=nn.MSELoss())
    assert found.error < 1e-6
    torch.testing.assert_close(found.train, closed.train, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.test, closed.test, rtol=0, atol=1e-6)
    assert found.max_lr == pytest.approx(closed.max_lr / 2)


def test_rate_of_other_losses_by_the_dense_curvature() -> None:
    J, y, start = features(5, 3, 7), LOSSES["cross-entropy"][1], drawn(5, 3)
    flat = J.flatten(0, 1)
    H = torch.autograd.functional.hessian(
        lambda w: nn.functional.cross_entropy(start + J @ w, y), torch.zeros(flat.shape[1], dtype=F64)
    )
    largest = float(torch.linalg.eigvalsh(H)[-1])
    found = pb.linear_dynamics(gram(J, J), y, initial=start, time=0, loss=nn.CrossEntropyLoss(), momentum=0.25)
    assert found.max_lr == pytest.approx(2.5 / largest, rel=1e-6)
    shared = gram(J, J)[:, :, 0, 0]
    alike = shared[:, :, None, None] * torch.eye(3, dtype=F64)
    options: dict[str, Any] = {"initial": start, "time": 0, "loss": nn.CrossEntropyLoss()}
    assert pb.linear_dynamics(shared, y, **options).max_lr == pytest.approx(
        pb.linear_dynamics(alike, y, **options).max_lr, rel=1e-6
    )


def network(outputs: int, activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), activation or nn.Tanh(), nn.Linear(16, outputs)).double().eval()


@pytest.mark.parametrize(("outputs", "steps"), [(1, 50), (3, 50), pytest.param(2, STEPS, marks=pytest.mark.slow)])
def test_kernels_of_a_network_tell_how_its_linearisation_trains(outputs: int, steps: int) -> None:
    """From ``Kernel`` objects alone to up to 1,000 steps of torch's SGD on ``pb.linearize(model)``: 1e-6."""
    model, x, x2, y = network(outputs), drawn(8, 4), drawn(5, 4, seed=3), drawn(8, outputs)
    start, start2 = model(x).detach(), model(x2).detach()
    kernels = [pb.tangent_kernel(model, each, x2=other, contract="full") for each, other in ((x, None), (x2, x))]
    limit = pb.linear_dynamics(kernels[0], y).max_lr
    found = pb.linear_dynamics(
        kernels[0], y, cross=kernels[1], initial=start, cross_initial=start2, lr=0.5 * limit, time=steps, momentum=0.3
    )
    linear = pb.linearize(model)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.5 * limit, momentum=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        ((linear(x) - y) ** 2).mean().div(2).backward()
        optimizer.step()
    assert float((found.train - linear(x)).detach().abs().max()) < 1e-6
    assert float((found.test - linear(x2)).detach().abs().max()) < 1e-6


def test_kernels_of_theory_are_taken_as_arrays() -> None:
    x = drawn(5, 3).numpy()
    _, ntk = pb.theory.infinite_width_kernels("relu", 2, 1.4, 0.1, x)
    assert isinstance(ntk, np.ndarray)
    found = pb.linear_dynamics(ntk, x[:, 0], time=math.inf)
    assert found.train.numpy() == pytest.approx(x[:, 0], rel=1e-9)
    assert found.test is None
    single = pb.linear_dynamics(ntk.astype(np.float32), x[:, 0], time=2.0)
    assert single.train.dtype == F64
    assert single.train.numpy() == pytest.approx(pb.linear_dynamics(ntk, x[:, 0], time=2.0).train.numpy(), abs=1e-5)


def posterior(lr: float | None, time: float, momentum: float) -> tuple[Tensor, Tensor, pb.Ensemble]:
    """Outputs of 40,000 linear models whose starts are drawn from a Gaussian process, trained one by one."""
    J, J2 = features(4, 1, 3, parameters=6)[:, 0], features(2, 1, 4, parameters=6)[:, 0]
    P, P2 = features(4, 1, 5, parameters=7)[:, 0], features(2, 1, 6, parameters=7)[:, 0]
    y, weights = drawn(4), drawn(7, 40000, seed=1)
    found = pb.ensemble_dynamics(
        (P @ P.T, J @ J.T), y, cross=(P2 @ P.T, J2 @ J.T), test=(P2 @ P2.T, None), lr=lr, time=time, momentum=momentum
    )
    each = pb.linear_dynamics(
        torch.einsum("ip,jp->ij", J, J), y[:, None].expand(-1, 40000) * 1.0, cross=J2 @ J.T, initial=P @ weights,
        cross_initial=P2 @ weights, lr=None if lr is None else lr * 40000,
        time=time * (1 if lr is not None or time == math.inf else 40000), momentum=momentum,
    )  # fmt: skip
    assert each.test is not None
    return each.test.mean(1), torch.cov(each.test), found


@pytest.mark.parametrize(("lr", "time", "momentum"), [(None, 1.0, 0.0), (None, math.inf, 0.0), (0.05, 9, 0.6)])
def test_an_ensemble_is_that_of_models_drawn_and_trained(lr: float | None, time: float, momentum: float) -> None:
    mean, covariance, found = posterior(lr, time, momentum)
    spread = torch.diagonal(found.covariance).sqrt()
    assert bool(((mean - found.mean).abs() < 4 * spread / 200).all())
    size = spread[:, None] * spread
    assert bool(((covariance - found.covariance).abs() < 4 * 2**0.5 * size / 200).all())
    assert found.stddev.tolist() == pytest.approx(spread.tolist())


def test_the_nngp_kernel_alone_gives_the_bayesian_posterior() -> None:
    """Both kernels the NNGP's, at the end: conditioning of a Gaussian process; Lee et al. (2019), section 2.4."""
    x, x2, y = drawn(6, 3), drawn(4, 3, seed=8), drawn(6, 2)
    (K, _), (across, _), (own, _) = (
        pb.theory.infinite_width_kernels("erf", 2, 1.5, 0.2, a.numpy(), b.numpy())
        for a, b in ((x, x), (x2, x), (x2, x2))
    )
    found = pb.ensemble_dynamics((K, K), y, cross=(across, across), test=own)
    solved = np.linalg.solve(K, across.T).T
    assert found.mean.numpy() == pytest.approx(solved @ y.numpy(), rel=1e-6)
    assert found.covariance.numpy() == pytest.approx(own - solved @ across.T, abs=1e-8)
    times = pb.ensemble_dynamics((K, K), y, cross=(across, across), test=own, time=[0.0, 5.0, math.inf])
    assert times.mean.shape == (3, 4, 2)
    assert times.covariance.shape == (3, 4, 4)
    assert times.covariance[0].numpy() == pytest.approx(own)
    assert (times.stddev[1:] <= times.stddev[:-1] + 1e-12).all()


EYE, ONES = torch.eye(2), torch.ones(2)
PAIR = (EYE, EYE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pb.linear_dynamics(torch.ones(2, 3), ONES), r"expected a square `kernel`, got shape \(2, 3\)"),
        (lambda: pb.linear_dynamics(torch.ones(2), ONES), r"expected `kernel` \(N1, N2\) or .*, got shape \(2,\)"),
        (lambda: pb.linear_dynamics(torch.ones(2, 2, 3), ONES), r"`kernel` \(N1, N2\) or .*, got shape \(2, 2, 3\)"),
        (lambda: pb.linear_dynamics(EYE * math.nan, ONES), r"expected a finite `kernel`, got NaN"),
        (lambda: pb.linear_dynamics(torch.tensor([[1.0, 0.5], [0.0, 1]]), ONES), r"a symmetric `kernel`, got K - K\^T"),
        (
            lambda: pb.linear_dynamics(torch.tensor([[1.0, 2], [2, 1]]), ONES),
            r"a positive semi-definite `kernel`, got a smallest eigenvalue of -1 beside 3",
        ),
        (lambda: pb.linear_dynamics(-EYE, ONES), r"a smallest eigenvalue of -1 beside -1"),
        (lambda: pb.linear_dynamics(EYE, torch.ones(3)), r"expected `targets` \(2, ...\), got shape \(3,\)"),
        (lambda: pb.linear_dynamics(EYE, torch.tensor(1.0)), r"expected `targets` \(2, ...\), got shape \(\)"),
        (lambda: pb.linear_dynamics(torch.ones(2, 2, 3, 3), torch.ones(2, 2)), r"`targets` \(2, ...\) with 3 outputs"),
        (lambda: pb.linear_dynamics(EYE, ONES * math.inf), r"expected finite `targets`, got NaN or infinity"),
        (lambda: pb.linear_dynamics(EYE, torch.tensor([1.0, math.nan])), r"expected finite `targets`, got NaN or inf"),
        (lambda: pb.linear_dynamics(torch.tensor([[1, math.inf], [0, 1]]), ONES), r"a finite `kernel`, got NaN or inf"),
        (lambda: pb.linear_dynamics(EYE, ONES, initial=torch.tensor([0, math.nan])), r"finite `initial`, got NaN or"),
        (lambda: pb.linear_dynamics(EYE, ONES, initial=torch.ones(2, 3)), r"`targets` \(2, 3\), got shape \(2,\)"),
        (lambda: pb.linear_dynamics(EYE, ONES, cross=torch.ones(3, 3)), r"`cross` \(M, 2\), got shape \(3, 3\)"),
        (
            lambda: pb.linear_dynamics(EYE, ONES, cross=torch.ones(3, 2), cross_initial=ONES),
            r"expected `cross_initial` \(3,\), got shape \(2,\)",
        ),
        (lambda: pb.linear_dynamics(EYE, ONES, time=-1.0), r"expected `time` of at least 0, one or a list, got -1.0"),
        (lambda: pb.linear_dynamics(EYE, ONES, time=math.nan), r"`time` of at least 0, one or a list, got nan"),
        (lambda: pb.linear_dynamics(EYE, ONES, time=[]), r"`time` of at least 0, one or a list, got shape \(0,\)"),
        (lambda: pb.linear_dynamics(EYE, ONES, momentum=1.0), r"expected `momentum` in \[0, 1\), got 1.0"),
        (lambda: pb.linear_dynamics(EYE, ONES, lr=0.0, time=1), r"expected a finite `lr` above 0, or None, got 0.0"),
        (lambda: pb.linear_dynamics(EYE, ONES, lr=0.1, time=1.5), r"whole numbers of steps as `time`, got 1.5"),
        (
            lambda: pb.linear_dynamics(EYE, ONES, lr=6.0),
            r"a stable `lr` for time=inf, got 6, 1.5 times the largest stable rate 4. Pass a smaller rate",
        ),
        (lambda: pb.linear_dynamics(EYE, ONES, loss="hinge"), r"expected `loss` to be one of 'squared', got 'hinge'"),
        (lambda: pb.linear_dynamics(EYE, ONES, loss=nn.MSELoss()), r"expected finite times for this loss, got inf"),
        (
            lambda: pb.linear_dynamics(EYE, torch.tensor([0, 1]), loss=nn.CrossEntropyLoss(), time=1.0),
            r"linear_dynamics: ",
        ),
        (
            lambda: pb.linear_dynamics(pb.tangent_kernel(network(3), drawn(4, 4)), drawn(4, 3)),
            r"expected `kernel` of single outputs, got 'trace' of 3 outputs. Pass contract='full'",
        ),
        (
            lambda: pb.linear_dynamics(
                EYE, ONES, loss=lambda f, y: (f - y).abs() ** 0.5, time=1.0, initial=ONES
            ),
            r"linear_dynamics: expected a finite gradient of the loss",
        ),
        (lambda: pb.ensemble_dynamics(EYE, ONES, cross=PAIR, test=EYE), r"`kernels` as \(nngp, ntk\), got Tensor"),
        (lambda: pb.ensemble_dynamics(PAIR, ONES, cross=EYE, test=EYE), r"`cross` as \(nngp, ntk\), got Tensor"),
        (lambda: pb.ensemble_dynamics(PAIR, ONES, cross=PAIR, test=torch.eye(3)), r"`test` \(2, 2\), got \(3, 3\)"),
        (lambda: pb.ensemble_dynamics((-EYE, EYE), ONES, cross=PAIR, test=EYE), r"a positive semi-definite `nngp`"),
        (lambda: pb.ensemble_dynamics(PAIR, ONES, cross=PAIR, test=-EYE), r"a positive semi-definite `test`"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_rounding_of_a_singular_kernel_is_no_refusal() -> None:
    for dtype in (torch.float32, F64):
        J = drawn(40, 3).to(dtype)
        found = pb.linear_dynamics(J @ J.T, drawn(40), time=math.inf)
        assert bool(torch.isfinite(found.train).all())
        basis = torch.linalg.qr(J.double()).Q
        torch.testing.assert_close(found.train, basis @ (basis.T @ drawn(40)), rtol=0, atol=1e-4)


def test_an_integration_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = type("Failed", (), {"success": False, "message": "Too much work."})
    monkeypatch.setattr("pullback.dynamics.linear.other_losses.solve_ivp", lambda *a, **k: failed)
    with pytest.raises(pb.InputError, match=r"a flow that can be integrated, got Too much work. Pass earlier times"):
        pb.linear_dynamics(EYE, ONES, time=1.0, loss=nn.MSELoss())
