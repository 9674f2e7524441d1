"""Optimizers on landscapes, run unchanged (S0-32, S0-33, S0-35, S0-42, S1-57, S1-76, S1-77)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, ReduceLROnPlateau, StepLR

import pullback as pb
from pullback import dynamics
from pullback.runs import RunWriter

F64 = torch.float64
MAKERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-2),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "centred": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4),
    "wolfe": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", max_iter=3),
    "textbook": lambda p: dynamics.textbook.Adam(p, lr=1e-2),
}  # fmt: skip


def plain(make: Any, function: Any, start: Tensor, steps: int) -> tuple[Tensor, Tensor, int]:
    """A loop as anyone writes it: places, losses there, evaluations."""
    x = start.clone().requires_grad_()
    optimizer = make([x])
    path, losses, calls = [x.detach().clone()], [], 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(optimizer.step(closure).detach())
        path.append(x.detach().clone())
    losses.append(function(x).detach())
    return torch.stack(path), torch.stack(losses), calls


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_moves_as_in_a_plain_loop(name: str, dtype: torch.dtype) -> None:
    valley = dynamics.landscape("rosenbrock")
    start = valley.start.to(dtype)
    found = dynamics.simulate(MAKERS[name], "rosenbrock", start, 12)
    x, losses, calls = plain(MAKERS[name], valley, start, 12)
    assert found.x.dtype == dtype
    assert torch.equal(found.x, x)
    assert torch.equal(found.loss, losses)
    assert int(found.evaluations) == calls
    assert found.steps == 12


@pytest.mark.parametrize("world", dynamics.LANDSCAPES)
def test_every_landscape_is_one_of_its_own_gradient(world: str) -> None:
    """Each point by itself: a stack of starts moves as each does alone, bit by bit."""
    known = dynamics.landscape(world)
    made = torch.Generator().manual_seed(3)
    starts = known.start + 0.1 * torch.randn(2, 3, len(known.start), generator=made, dtype=F64)
    found = dynamics.simulate(MAKERS["Adam"], world, starts, 5)
    assert found.x.shape == (2, 3, 6, len(known.start))
    assert found.loss.shape == (2, 3, 6)
    for place in ((0, 0), (1, 2)):
        alone = dynamics.simulate(MAKERS["Adam"], world, starts[place], 5)
        torch.testing.assert_close(found.x[place], alone.x, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.loss, known(found.x), rtol=1e-12, atol=1e-12)
    slopes = torch.func.vmap(torch.func.grad(known.function))(found.x.reshape(-1, len(known.start)))
    torch.testing.assert_close(found.gradient_norm.flatten(), slopes.norm(dim=-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world", dynamics.LANDSCAPES)
def test_minimisers_are_minima(world: str) -> None:
    known = dynamics.landscape(world)
    assert torch.isfinite(known(known.start))
    for point in known.minimisers:
        slope = torch.func.grad(known.function)(point)
        assert float(slope.norm()) < 1e-9
        assert float(torch.linalg.eigvalsh(known.hessian(point)).min()) > 0
        assert float(known(point)) <= float(known(known.start))


@pytest.mark.parametrize("name", MAKERS)
def test_all_at_once_is_one_after_another(name: str) -> None:
    """Starts, seeds, noise, clipping and other optimizers beside it: equal to the loop over each."""
    starts = torch.tensor([[-1.2, 1.0], [0.5, 0.3], [1.5, -0.5]], dtype=F64)
    setting = {"noise_covariance": [0.3, 0.1], "clip": dynamics.clip_norm(5.0)}
    beside = {name: MAKERS[name], "other": MAKERS["Adam"]}
    found = dynamics.simulate_all(beside, "rosenbrock", starts, 6, 2, **setting)[name]
    assert found.x.shape == (2, 3, 7, 2)
    for seed in range(2):  # the noise of a seed is one stream for all its starts
        alone = dynamics.simulate(MAKERS[name], "rosenbrock", starts, 6, [seed], **setting)
        torch.testing.assert_close(found.x[seed], alone.x, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found.loss[seed], alone.loss, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found.x[0], found.x[1])


def test_hyperparameters_in_one_pass() -> None:
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return dynamics.landscape("quadratic")(x)

    rates = {lr: (lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (0.001, 0.01, 0.019)}
    found = dynamics.simulate_all(rates, counted, [1.0, 1.0], 20, 4)
    assert calls == 21
    problem = dynamics.Quadratic([100.0, 1.0])
    for lr, each in found.items():
        expected = problem.trajectory("gradient_descent", [1.0, 1.0], 20, lr=lr)
        torch.testing.assert_close(each.x, expected.expand(4, 21, 2), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("maker", "first"),
    [
        (lambda p: torch.optim.SGD(p, lr=2 / 101), 444),
        (lambda p: torch.optim.Adam(p, lr=0.01), 305),
        (lambda p: torch.optim.Adagrad(p, lr=0.1), 265),
        (lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9), 137),
    ],
)
def test_first_step_below_a_millionth(maker: Any, first: int) -> None:
    """S0-32, on curvatures 100 and 1 from (1, 1)."""
    found = dynamics.simulate(maker, "quadratic", None, 500)
    assert abs(float(found.steps_to(1e-6)) - first) <= 1
    assert float(found.steps_to(-1.0)) == math.inf


def test_rmsprop_ends_in_a_cycle() -> None:
    """S0-32: a step of about lr each way, loss 1.2625e-3."""
    found = dynamics.simulate(lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9), "quadratic", None, 2000)
    torch.testing.assert_close(found.loss[-2:], torch.full((2,), 1.2625e-3, dtype=F64), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.x[-1], found.x[-3], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.x[-1], -found.x[-2], rtol=1e-6, atol=1e-9)


def test_newton_like_methods_need_few_steps() -> None:
    """S0-32: Newton 1 step, LBFGS a few evaluations; S0-42: heavy ball before gradient descent, both at their best."""
    problem = dynamics.Quadratic([100.0, 1.0])
    assert float(problem.loss(problem.trajectory("newton", [1.0, 1.0], 1)[1])) < 1e-6
    assert float(problem.loss(problem.trajectory("natural_gradient", [1.0, 1.0], 1)[1])) < 1e-6
    damped = problem.loss(problem.trajectory("damped_newton", [1.0, 1.0], 8, damping=0.1))
    assert float(damped[-1]) < 1e-6
    found = dynamics.simulate(
        lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", tolerance_grad=0), problem, None, 2
    )
    assert float(found.loss[-1]) < 1e-12
    best = {name: problem.optimal(name) for name in ("gradient_descent", "heavy_ball")}
    makers = {name: (lambda p, o=o: torch.optim.SGD(p, lr=o.lr, momentum=o.momentum)) for name, o in best.items()}
    steps = {name: float(t.steps_to(1e-6)) for name, t in dynamics.simulate_all(makers, problem, None, 500).items()}
    assert steps["heavy_ball"] < steps["gradient_descent"] / 5


def test_noise_settles_where_theory_says() -> None:
    """S1-57: a rate lowered late lowers the variance by the factor of S0-40."""
    problem, chains = dynamics.Quadratic([1.0]), 4000

    def make(p: list[Tensor]) -> Any:
        optimizer = torch.optim.SGD(p, lr=0.5)
        return optimizer, MultiStepLR(optimizer, [30], gamma=0.1)

    found = dynamics.simulate(make, problem, torch.zeros(chains, 1, dtype=F64), 90, noise_covariance=1.0)
    expected = 0.0
    for lr, at, steps in ((0.5, 30, 30), (0.05, 90, 60)):
        kept = (1 - lr) ** (2 * steps)  # of the variance there was
        expected = kept * expected + (1 - kept) * float(problem.stationary_covariance(lr, 1.0))
        found_here = float(found.x[:, at, 0].square().mean())
        assert found_here == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / chains))


def test_noise_has_its_covariance() -> None:
    C = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
    flat = lambda x: 0 * x.sum(-1)
    found = dynamics.simulate(MAKERS["SGD"], flat, torch.zeros(20000, 2, dtype=F64), 1, noise_covariance=C)
    drawn = found.x[:, 1] / 1e-3
    error = 5 * (C.square() + torch.outer(C.diagonal(), C.diagonal())).sqrt() / math.sqrt(20000)
    assert bool(((drawn.T @ drawn / 20000 - C).abs() < error).all())


def test_clipping() -> None:
    """S0-33, and the same steps as with torch's own functions."""
    g = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(dynamics.clip_norm(1.0)(g), torch.tensor([0.6, 0.8]), rtol=1e-6, atol=0)
    torch.testing.assert_close(dynamics.clip_value(0.5)(g), torch.tensor([0.5, 0.5]))
    for clip, by_torch in (
        (dynamics.clip_norm(2.0), lambda p: nn.utils.clip_grad_norm_(p, 2.0)),
        (dynamics.clip_value(1.5), lambda p: nn.utils.clip_grad_value_(p, 1.5)),
    ):
        found = dynamics.simulate(MAKERS["momentum"], "rosenbrock", None, 8, clip=clip)
        x = dynamics.landscape("rosenbrock").start.clone().requires_grad_()
        optimizer = MAKERS["momentum"]([x])
        for _ in range(8):
            optimizer.zero_grad()
            dynamics.landscape("rosenbrock")(x).backward()
            by_torch([x])
            optimizer.step()
        torch.testing.assert_close(found.x[-1], x.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("lone", [True, False])
def test_schedules(lone: bool) -> None:
    """S0-35: x goes down by the sum of the rates where the slope is 1."""
    start = [0.0] if lone else [[0.0], [1.0]]

    def make(schedule: Any) -> Any:
        def made(p: list[Tensor]) -> Any:
            optimizer = torch.optim.SGD(p, lr=1.0)
            return optimizer, schedule(optimizer)

        return made

    cosine = lambda o: CosineAnnealingLR(o, 10)
    step = lambda o: StepLR(o, 10, 0.1)
    inverse = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t))
    expected = {
        "step": [0.1 ** (t // 10) for t in range(26)],
        "1/t": [1 / (1 + t) for t in range(26)],
        "cosine": [(1 + math.cos(math.pi * t / 10)) / 2 for t in range(26)],
    }
    made = {"step": make(step), "1/t": make(inverse), "cosine": make(cosine)}
    for name, found in dynamics.simulate_all(made, lambda x: x.sum(-1), start, 26).items():
        moved = found.x[..., :-1, 0] - found.x[..., 1:, 0]
        torch.testing.assert_close(moved, torch.tensor(expected[name], dtype=F64).expand_as(moved), rtol=0, atol=1e-12)
    assert expected["step"][25] == pytest.approx(0.01)


def test_a_schedule_by_the_loss_follows_each_run() -> None:
    def make(p: list[Tensor]) -> Any:
        optimizer = torch.optim.SGD(p, lr=0.021)  # diverges along the first coordinate
        return optimizer, ReduceLROnPlateau(optimizer, factor=0.1, patience=3)

    found = dynamics.simulate(make, "quadratic", [[1.0, 1.0], [0.0, 1.0]], 20)
    apart = [dynamics.simulate(make, "quadratic", start, 20).x for start in ([1.0, 1.0], [0.0, 1.0])]
    assert torch.equal(found.x, torch.stack(apart))


def test_a_network_is_a_landscape() -> None:
    """The loss over all parameters, at one point and at many; the network itself is left alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3, dtype=F64), torch.randint(0, 2, (6,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    world = dynamics.network_landscape(model, nn.CrossEntropyLoss(), x, y)
    assert float(world(world.start)) == pytest.approx(nn.CrossEntropyLoss()(model(x), y).item(), rel=1e-12)
    found = dynamics.simulate(lambda p: torch.optim.Adam(p, lr=0.05), world, None, 10, 3, noise_covariance=1e-4)
    assert found.x.shape == (3, 11, 26)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    clean = dynamics.simulate(lambda p: torch.optim.Adam(p, lr=0.05), world, None, 10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for _ in range(10):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(x), y).backward()
        optimizer.step()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(clean.x[-1], flat, rtol=1e-9, atol=1e-11)


def test_a_drawn_start() -> None:
    found = dynamics.simulate(MAKERS["SGD"], "saddle", lambda g: torch.randn(2, generator=g, dtype=F64), 2, [4, 7])
    for place, seed in enumerate((4, 7)):
        expected = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        assert torch.equal(found.x[place, 0], expected)


def test_a_record_that_load_run_reads(tmp_path: Path) -> None:
    found = dynamics.simulate(MAKERS["Adam"], "beale", [[1.0, 1.0], [2.0, 0.3]], 4)
    with RunWriter(tmp_path / "run", found.meta) as writer:
        found.write(writer, 1)
    run = pb.load_run(tmp_path / "run")
    assert run.meta["optimizer"]["kind"] == "Adam"
    steps, losses = run.series("loss", "loss")
    assert steps == [0, 1, 2, 3, 4]
    assert losses == found.loss[1].tolist()
    assert run.series("position", "x")[1] == found.x[1].tolist()
    with RunWriter(tmp_path / "other", {}) as writer, pytest.raises(pb.InputError, match="`run` from 0 to 1, got 2"):
        found.write(writer, 2)


def test_a_batch_of_all_samples_is_gradient_descent() -> None:
    """S1-76, S1-77: with S = n every draw without replacement is the whole sum; smaller batches only on average."""
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=made, dtype=F64), torch.randn(8, generator=made, dtype=F64)
    ends = {}
    for size in (8, 2):
        w = torch.zeros(3, dtype=F64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        schedule = StepLR(optimizer, 5, 0.5)
        for _ in range(12):
            kept = torch.randperm(8, generator=made)[:size]
            optimizer.zero_grad()
            (x[kept] @ w - y[kept]).square().mean().backward()
            optimizer.step()
            schedule.step()
        ends[size] = w.detach()

    def make(p: list[Tensor]) -> Any:
        optimizer = torch.optim.SGD(p, lr=0.1)
        return optimizer, StepLR(optimizer, 5, 0.5)

    whole = lambda w: (w @ x.T - y).square().mean(-1)
    found = dynamics.simulate(make, whole, [0.0] * 3, 12).x[-1]
    torch.testing.assert_close(found, ends[8], rtol=1e-12, atol=1e-13)
    assert float((found - ends[2]).norm()) > 1e-3
    noise = dynamics.batch_covariance(2 * (x @ found - y)[:, None] * x, 8)
    assert float(noise.abs().max()) == 0


def test_nothing_else_is_moved() -> None:
    state = torch.random.get_rng_state()
    dynamics.simulate(MAKERS["LBFGS"], "himmelblau", [[1.0, 1.0], [2.0, 0.3]], 3, 2, noise_covariance=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        found = dynamics.simulate(MAKERS["SGD"], "himmelblau", None, 2)
    assert not found.x.requires_grad
    assert not torch.equal(found.x[0], found.x[2])


def test_what_diverges_is_followed_to_the_end() -> None:
    found = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=1.0), "rosenbrock", [[-1.2, 1.0], [1.0, 1.0]], 30)
    assert not bool(found.loss[0].isfinite().all())
    assert torch.equal(found.x[1], torch.ones(31, 2, dtype=F64))  # the other is not touched by it


SGD = MAKERS["SGD"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SGD, "valley", None, 1), "`landscape` to be one of 'quadratic', .*'rosenbrock'.*got 'valley'"),
        ((SGD, "quadratic", [math.nan, 1.0], 1), "finite numbers in `x0`, got NaN or Inf"),
        ((SGD, "quadratic", [1.0], 1), r"`x0` with 2 coordinates last, got shape \(1,\)"),
        ((SGD, "quadratic", 1.0, 1), r"`x0` with 2 coordinates last, got shape \(\)"),
        ((SGD, lambda x: x.sum(-1), None, 1), "`x0`, got none, and a function that has no start"),
        ((SGD, "quadratic", None, -1), "`steps` at least 0, got -1"),
        ((SGD, "quadratic", None, True), "`steps` at least 0, got True"),
        ((SGD, "quadratic", None, 1, 0), "`seeds` of at least 1, or a list of them, got 0"),
        ((SGD, "quadratic", None, 1, []), "`seeds` of at least 1"),
        ((SGD, "quadratic", None, 1, [1.5]), r"`seeds` of at least 1, or a list of them, got \[1\.5\]"),
        ((SGD, "quadratic", [1j, 1.0], 1), "real numbers in `x0`, got torch.complex128"),
        ((SGD, "quadratic", "here", 1), "numbers in `x0`, got str"),
        ((SGD, "quadratic", torch.zeros(0, 2), 1), r"`x0` with 2 coordinates last, got shape \(0, 2\)"),
        ((SGD, "quadratic", lambda g: torch.ones(3), 1), r"`x0` with 2 coordinates last, got shape \(3,\)"),
        ((SGD, "quadratic", None, 2.5), "`steps` at least 0, got 2.5"),
        ((SGD, lambda x: (1j * x).sum(-1), [1.0], 1), r"one value a point.* got shape \(\), torch.complex128"),
        ((lambda p: torch.optim.SGD(p, rate=1.0), "quadratic", None, 1), "settings the optimizer takes, got SGD.__in"),
        ((lambda p: torch.optim.SGD(p, lr=math.inf), "quadratic", None, 1), "a finite learning rate, got inf"),
        ((lambda p: (torch.optim.SGD(p, lr=1.0), "step"), "quadratic", None, 1), "make_optimizer, got SGD and str"),
        (
            (lambda p: (torch.optim.SGD(p, lr=1.0), StepLR(torch.optim.SGD([Tensor([1.0])]), 1)), "quadratic", None, 1),
            "a schedule of that optimizer, got one of another",
        ),
        ((SGD, lambda x: x.sum(), [[1.0]], 1), r"one value a point, \(1,\) of \(1, 1\), got shape \(\)"),
        ((SGD, lambda x: 3.0, [1.0], 1), "one value a point.* got float"),
        ((SGD, lambda x: x.detach().sum(-1), [1.0], 1), "a differentiable function, got one without gradients"),
        (("SGD", "quadratic", None, 1), "parameters -> optimizer, got str"),
        ((lambda p: None, "quadratic", None, 1), "Optimizer from make_optimizer, got NoneType"),
        (
            (lambda p: torch.optim.SGD(p, lr=-0.1), "quadratic", None, 1),
            "settings the optimizer takes, got Invalid lea",
        ),
        ((lambda p: torch.optim.SGD(p, lr=0.0), "quadratic", None, 1), "a learning rate above 0, got 0.0"),
        (
            (lambda p: torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=1.0), "quadratic", None, 1),
            "an optimizer of the parameters given, got one of others",
        ),
    ],
)
def test_refusals(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        dynamics.simulate(*arguments)


def test_further_refusals() -> None:
    with pytest.raises(pb.InputError, match="`name` to be one of 'quadratic'"):
        dynamics.landscape("hill")
    with pytest.raises(pb.InputError, match="`most` above 0, got 0"):
        dynamics.clip_norm(0)
    with pytest.raises(pb.InputError, match="`most` above 0, got -1"):
        dynamics.clip_value(-1)
    with pytest.raises(pb.InputError, match="`most` above 0, got '1'"):
        dynamics.clip_norm("1")  # type: ignore[arg-type]
    for clip, got in ((1.0, "-> gradients, got float"), (lambda g: None, "got NoneType"), (torch.sum, r"got shape \(")):
        with pytest.raises(pb.InputError, match=f"simulate: expected `clip`.*{got}"):
            dynamics.simulate(SGD, "quadratic", None, 1, clip=clip)  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="`make_optimizers`: makers by name, got list"):
        dynamics.simulate_all([SGD], "quadratic", None, 1)  # type: ignore[arg-type]
    for at in ([1.0], [[1.0, 1.0]]):
        with pytest.raises(pb.InputError, match=r"Landscape.hessian: expected `x` \(2,\), got shape"):
            dynamics.landscape("beale").hessian(at)
    assert float(dynamics.landscape("saddle")([1.0, 2.0])) == -1.5
    with pytest.raises(pb.InputError, match="network_landscape: expected `model` to be an nn.Module, got function"):
        dynamics.network_landscape(lambda x: x, nn.MSELoss(), torch.ones(2, 2), torch.ones(2, 1))  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="`loss_fn`: a loss module, or a callable .* got 'mse'"):
        dynamics.network_landscape(nn.Linear(2, 1), "mse", torch.ones(2, 2), torch.ones(2, 1))  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="dense tensors in `x`, got one of layout torch.sparse_coo"):
        dynamics.network_landscape(nn.Linear(2, 1), nn.MSELoss(), torch.ones(2, 2).to_sparse(), torch.ones(2, 1))
    with pytest.raises(pb.InputError, match="noise_covariance"):
        dynamics.simulate(SGD, "quadratic", None, 1, noise_covariance=[1.0, 2.0, 3.0])
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))
    with pytest.raises(pb.UnsupportedError, match="`1` .Dropout. in train mode"):
        dynamics.network_landscape(model, nn.MSELoss(), torch.ones(2, 2), torch.ones(2, 1))
