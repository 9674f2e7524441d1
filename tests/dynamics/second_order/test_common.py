"""One test of all second-order optimizers: what a ``torch.optim.Optimizer`` promises, they keep."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import dynamics
from tests.dynamics.second_order.methods import METHODS, Make, Spare
from tests.thinned import thinned

LOSS = nn.CrossEntropyLoss()


@pytest.fixture(params=thinned(list(METHODS)))  # each run tries a third, the slow ones the rest
def make(request: pytest.FixtureRequest) -> Make:
    return METHODS[request.param]


def problem(seed: int = 0) -> tuple[Spare, Tensor, Tensor]:
    torch.manual_seed(seed)
    return Spare().double().eval(), torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_every_public_optimizer_is_here() -> None:
    public = {name for name in dynamics.__all__ if isinstance(getattr(dynamics, name), type)}
    public = {name for name in public if issubclass(getattr(dynamics, name), torch.optim.Optimizer)}
    model, _, _ = problem()
    assert public == {type(make(model, LOSS)).__name__ for make in METHODS.values()}


def test_the_loss_falls_and_the_record_says_what_was_done(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    first = optimizer.step(x, y)
    for _ in range(4):
        optimizer.step(x, y)
    assert first.shape == ()
    assert not first.requires_grad
    assert LOSS(model(x), y) < 0.9 * first
    last = optimizer.last
    assert last.predicted_decrease > 0
    assert last.damping > 0
    assert 0 <= last.residual < 0.2
    assert last.converged
    assert last.action
    assert last.tries >= 1
    assert optimizer.steps == 5
    assert len(optimizer.history) in (0, 5)


def test_nothing_but_the_step_is_left(make: Make) -> None:
    model, x, y = problem()
    model.first.register_buffer("kept", torch.ones(2))
    before, state = weights(model), torch.get_rng_state()
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    hooks = dict(model._forward_hooks)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    make(model, LOSS).step(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert model._forward_hooks == hooks
    assert not model._forward_pre_hooks
    assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(model.first.kept, torch.ones(2))
    assert same({n: v for n, v in before.items() if "spare" in n}, weights(model) | {})
    assert not torch.equal(before["first.weight"], model.first.weight)
    handle.remove()


def test_resume_is_exact(make: Make) -> None:
    """Saved to a file after two steps, loaded into a new optimizer with other settings of its groups."""
    model, x, y = problem()
    optimizer = make(model, LOSS)
    for _ in range(2):
        optimizer.step(x, y)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    for _ in range(2):
        optimizer.step(x, y)
    saved.seek(0)
    found = torch.load(saved, weights_only=True)
    other, _, _ = problem(seed=5)
    other.load_state_dict(found["model"])
    again = make(other, LOSS, damping=3.0, lr=0.7)
    again.load_state_dict(found["optimizer"])
    for _ in range(2):
        again.step(x, y)
    assert same(weights(model), weights(other))
    assert again.last == optimizer.last
    assert again.history == optimizer.history
    assert again.steps == 4


def test_a_copy_goes_the_same_way(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    optimizer.step(x, y)
    other_model, other = copy.deepcopy((model, optimizer))
    optimizer.step(x, y)
    other.step(x, y)
    assert same(weights(model), weights(other_model))


def test_state_of_another_optimizer_is_refused(make: Make) -> None:
    model, _, _ = problem()
    optimizer = make(model, LOSS)
    with pytest.raises(ValueError, match=r"load_state_dict: expected the state of .*, got another optimizer's"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    other = dynamics.Newton if not isinstance(optimizer, dynamics.Newton) else dynamics.SaddleFreeNewton
    with pytest.raises(ValueError, match=r"got that of (Newton|SaddleFreeNewton)"):
        optimizer.load_state_dict(other(model, LOSS).state_dict())


def closure_of(model: nn.Module, optimizer: Any, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


@pytest.mark.parametrize("form", ["closure", "both", "keyword"])
def test_closure(make: Make, form: str) -> None:
    """Torch's closure alone, whose batch is seen, and beside a batch, is the step on that batch."""
    model, x, y = problem()
    other = copy.deepcopy(model)
    plain, optimizer, loss_fn = make(model, LOSS), make(other, nn.CrossEntropyLoss()), None
    loss_fn = optimizer.loss_fn
    closure = closure_of(other, optimizer, lambda: loss_fn(other(x), y))
    arguments = {"closure": (closure,), "both": (x, y, closure), "keyword": (x, y)}[form]
    for _ in range(2):
        expected = plain.step(x, y)
        found = optimizer.step(*arguments, **({"closure": closure} if form == "keyword" else {}))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    # two roundings of one gradient; what is iterated, or follows a ratio of small differences, doubles them
    for name, p in weights(model).items():
        torch.testing.assert_close(weights(other)[name], p, rtol=1e-6, atol=1e-8)
    assert not other._forward_pre_hooks
    assert not loss_fn._forward_pre_hooks


def test_closure_with_a_penalty_counts(make: Make) -> None:
    """The gradient is the closure's: at the end of training it is that of loss and penalty that vanishes."""
    model, x, y = problem()
    optimizer = make(model, LOSS)

    def penalised() -> Tensor:
        return LOSS(model(x), y) + 0.05 * sum(p.square().sum() for p in model.parameters())

    closure = closure_of(model, optimizer, penalised)
    first = optimizer.step(x, y, closure)
    for _ in range(3):
        optimizer.step(x, y, closure)
    assert penalised() < first
    assert not torch.equal(model.spare.weight, problem()[0].spare.weight)  # it has a gradient now


def test_neither_batch_nor_closure(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    remedy = r"Call step\(x, y\)"
    with pytest.raises(ValueError, match=rf"step: expected a batch.*, got neither a batch nor a closure\. {remedy}"):
        optimizer.step()
    with pytest.raises(ValueError, match=rf"got one of them alone\. {remedy}"):
        optimizer.step(x)
    with pytest.raises(ValueError, match=rf"got one of them alone\. {remedy}"):
        optimizer.step(None, y)


def test_closures_that_say_too_little(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    twice = lambda: LOSS(model(x), y) + LOSS(model(x), y)
    with pytest.raises(ValueError, match=r"calls `model` and `loss_fn` once each, got 2 calls of the model and 2"):
        optimizer.step(closure_of(model, optimizer, twice))
    with pytest.raises(ValueError, match=r"returns the loss, one number, got NoneType"):
        optimizer.step(x, y, lambda: None)
    with pytest.raises(ValueError, match=r"returns the loss, one number, got shape \(6, 2\)"):
        optimizer.step(x, y, lambda: model(x))
    for p in model.parameters():
        p.grad = None
    with pytest.raises(ValueError, match=r"a gradient for some parameter, got none\. Call loss.backward"):
        optimizer.step(x, y, lambda: LOSS(model(x), y))


def test_frozen_parameters_stay_and_thawed_ones_move(make: Make) -> None:
    model, x, y = problem()
    model.first.requires_grad_(False)
    before = weights(model)
    optimizer = make(model, LOSS)
    optimizer.step(x, y)
    assert torch.equal(before["first.weight"], model.first.weight)
    assert not torch.equal(before["second.weight"], model.second.weight)
    model.first.requires_grad_(True)
    optimizer.step(x, y)
    assert not torch.equal(before["first.weight"], model.first.weight)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match=r"expected a trainable parameter, got none"):
        optimizer.step(x, y)


def test_groups_have_rates_and_dampings_of_their_own(make: Make) -> None:
    """A rate twice as high moves a group twice as far; a group of huge damping stays where it is."""
    moved = {}
    for name, first in {"plain": {}, "faster": {"lr": 0.2}, "stiff": {"damping": 1e12}}.items():
        model, x, y = problem()
        before = weights(model)
        optimizer = make(model, LOSS, lr=0.1, params=[{"params": model.first.parameters(), **first}])
        optimizer.add_param_group({"params": list(model.second.parameters())})
        optimizer.step(x, y)
        moved[name] = {n: w - before[n] for n, w in weights(model).items()}
        assert len(optimizer.param_groups) == 2
    torch.testing.assert_close(moved["faster"]["first.weight"], 2 * moved["plain"]["first.weight"])
    torch.testing.assert_close(moved["faster"]["second.weight"], moved["plain"]["second.weight"])
    assert moved["stiff"]["first.weight"].abs().max() < 1e-9 < moved["stiff"]["second.weight"].abs().max()


def test_names_and_parameters_that_are_left_out(make: Make) -> None:
    model, x, y = problem()
    before = weights(model)
    make(model, LOSS, params=["second"]).step(x, y)
    assert torch.equal(before["first.weight"], model.first.weight)
    assert not torch.equal(before["second.bias"], model.second.bias)
    with pytest.raises(ValueError, match=r"expected parameters of `model`, got one of another module"):
        make(model, LOSS, params=nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match=r"`params` of one kind, got names among other things"):
        make(model, LOSS, params=["second", model.first.weight])
    optimizer = make(model, LOSS, params=["second"])
    with pytest.raises(ValueError, match="some parameters appear in more than one"):
        optimizer.add_param_group({"params": model.second.weight})


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=-1),
    ],
)
def test_schedulers_set_the_rate(make: Make, schedule: Callable[..., Any]) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS, lr=0.4)
    scheduler = schedule(optimizer)
    for _ in range(2):
        loss = optimizer.step(x, y)
        scheduler.step(*([float(loss)] if type(scheduler).__name__ == "ReduceLROnPlateau" else []))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    optimizer.zero_grad()


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rates_that_are_not_positive(make: Make, rate: float) -> None:
    model, _, _ = problem()
    with pytest.raises(ValueError, match=r"expected `lr` above 0, got"):
        make(model, LOSS, lr=rate)
    with pytest.raises(ValueError, match=r"`damping` (above 0|of at least 0), got -1"):
        make(model, LOSS, damping=-1.0)
    with pytest.raises(ValueError, match=r"expected `model` to be an nn.Module, got function"):
        make(lambda x: x, LOSS)


SETTINGS = {
    "dense_limit": [(-1, "at least 0, got -1"), (None, "at least 0, got None")],
    "tol": [(0.0, "above 0, got 0.0"), ("1e-3", "above 0, got '1e-3'")],
    "max_iters": [(0, "at least 1, got 0"), (2.5, "at least 1, got 2.5")],
    "rank": [(0, "at least 1, got 0"), (2.5, "at least 1, got 2.5")],
    "seed": [(-1, "at least 0, got -1"), (1.5, "at least 0, got 1.5")],
    "tries": [(0, "at least 1, got 0"), (2.5, "at least 1, got 2.5")],
    "least_damping": [(0.0, "above 0, got 0.0"), (float("inf"), "got inf")],
    "decay": [(1.5, "from 0 to 1, got 1.5"), ("0", "from 0 to 1, got '0'")],
}


def test_settings_out_of_range(make: Make) -> None:
    """Of what an optimizer has; what it has not is Python's own refusal."""
    model, x, y = problem()
    for setting, bad in SETTINGS.items():
        kept = vars(make(model, LOSS))
        has = setting in kept or setting in kept.get("trust", {})
        for value, got in bad:
            with pytest.raises(ValueError if has else TypeError, match=f"`{setting}`.*{got}" if has else setting):
                make(model, LOSS, **{setting: value})
    if hasattr(make(model, LOSS), "trust"):
        for bad_factor in ({"grow": 1.0}, {"grow": float("inf")}, {"shrink": 0.0}, {"shrink": "half"}):
            with pytest.raises(ValueError, match=r"expected `grow` above 1 and `shrink` in \(0, 1\], got"):
                make(model, LOSS, **bad_factor)
        given = {"grow": 3.0, "shrink": 0.4, "tries": 5, "least_damping": 1e-3}
        assert make(model, LOSS, **given).trust == given
    for name, value, got in (("lr", float("inf"), "inf"), ("lr", "0.1", "'0.1'"), ("lr", torch.ones(2), "tensor")):
        with pytest.raises(ValueError, match=rf"expected (a finite )?`{name}`( above 0)?, got {got}"):
            make(model, LOSS, **{name: value})
    with pytest.raises(ValueError, match=r"`damping`( above 0| of at least 0)?, got (inf|None)"):
        make(model, LOSS, damping=float("inf"))
    with pytest.raises(ValueError, match=r"`damping` (above 0|of at least 0), got None"):
        make(model, LOSS, damping=None)
    with pytest.raises(ValueError, match=r'expected a group with "params", got one with'):
        make(model, LOSS, params=[{"lr": 0.1}])
    with pytest.raises(ValueError, match=r"expected a closure that can be called, got str"):
        make(model, LOSS).step(x, y, "closure")
    with pytest.raises(ValueError, match=r"dense tensors in `x`, got one of layout torch.sparse_coo"):
        make(model, LOSS).step(x.to_sparse(), y)


def test_what_the_damping_follows_by_is_a_promise() -> None:
    newton = {"grow": 4.0, "shrink": 1 / 3, "tries": 10, "least_damping": 1e-10}
    assert dynamics.DampedNewton.usual == newton == dynamics.LevenbergMarquardt.usual
    assert dynamics.HessianFree.usual == newton | {"grow": 1.5, "shrink": 2 / 3, "least_damping": 1e-8}


class Breaks(nn.Module):
    """A loss whose module raises from the n-th call on."""

    reduction = "mean"

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return (z - y).square().mean()


def broken(model: nn.Module, x: Tensor, y: Tensor, optimizer: Any) -> Iterator[Callable[[], Any]]:
    """Calls that fail at the start, and on the way."""
    bad = x.clone()
    bad[2, 1] = torch.nan
    yield lambda: optimizer.step(bad, y)
    yield lambda: optimizer.step(x, y + 5)
    yield lambda: optimizer.step(x[:3], y)
    yield lambda: optimizer.step(x, y, closure=lambda: 1 / 0)


def test_an_exception_leaves_the_model_as_it_was(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    optimizer.step(x, y)
    before, state, rng = weights(model), copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()
    for call in broken(model, x, y, optimizer):
        with pytest.raises((ValueError, ZeroDivisionError)):
            call()
        assert same(before, weights(model))
        assert torch.equal(torch.get_rng_state(), rng)
        assert optimizer.state_dict()["second_order"] == state["second_order"]
        assert optimizer.state_dict()["param_groups"] == state["param_groups"]
        assert not model._forward_pre_hooks
        assert not model.training


def test_a_closure_that_fails_at_a_trial_point_leaves_the_weights(make: Make) -> None:
    model, x, y = problem()
    optimizer = make(model, LOSS)
    calls: list[int] = []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return LOSS(model(x), y)

    before = weights(model)
    closure = closure_of(model, optimizer, loss)
    if not optimizer.keeps_history:
        optimizer.step(x, y, closure)
        return
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(x, y, closure)
    assert same(before, weights(model))
    assert optimizer.steps == 0


@pytest.mark.parametrize(("layer", "what"), [(nn.Dropout(0.5), "dropout"), (nn.BatchNorm1d(3), "batch norm")])
def test_train_mode_is_refused_and_eval_mode_is_not(make: Make, layer: nn.Module, what: str) -> None:
    _, x, y = problem()
    model = nn.Sequential(layer, nn.Linear(3, 2)).double().train()
    optimizer = make(model, LOSS)
    before, buffers = weights(model), copy.deepcopy(dict(model.named_buffers()))
    for arguments in ((x, y), (closure_of(model, optimizer, lambda: LOSS(model(x), y)),)):
        with pytest.raises(ValueError, match=rf"{what} in train mode in layer `0`.*model.eval\(\)"):
            optimizer.step(*arguments)
    assert same(before, weights(model))
    assert model.training
    assert same(buffers, dict(model.named_buffers()))
    optimizer.step(x, y) if not model.eval().training else None
    assert not same(before, weights(model))


def test_float32_and_a_tensor_rate(make: Make) -> None:
    model, x, y = problem()
    model.float()
    optimizer = make(model, LOSS, lr=torch.tensor(0.5))
    loss = optimizer.step(x.float(), y)
    assert loss.dtype == torch.float32
    assert LOSS(model(x.float()), y) < loss
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_minimum_is_a_place_to_stay(make: Make) -> None:
    """At a stationary point the step is 0, and nothing is rejected or refused."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    optimizer = make(model, nn.MSELoss(), damping=0.5)
    for _ in range(2):
        optimizer.step(x, torch.zeros(2, 1, dtype=torch.float64))
    assert model.weight.item() == 0
    assert "rejected" not in optimizer.last.action
