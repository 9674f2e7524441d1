"""Callables that mix samples, or give nothing to differentiate, are refused by all that takes second derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.functional.own_losses import check_own_losses

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


MIXING: dict[str, Loss] = {
    "neighbour": lambda z, y: (z - z.roll(1, 0)).square().sum(1),
    "mean": lambda z, y: (z - z.mean(0)).square().sum(1) + _cross_entropy(z, y),
    "detached statistic": lambda z, y: _cross_entropy(z / z.detach().std(), y),
    "batch size": lambda z, y: _cross_entropy(z, y) / len(z),
    "one in the middle": lambda z, y: _cross_entropy(z, y) + torch.arange(len(z)).eq(2) * z.roll(-1, 0).square().sum(1),
}
OWN: dict[str, Loss] = {
    "confident": lambda z, y: _cross_entropy(1e4 * z, y),
    "focal": lambda z, y: (1 - torch.exp(-_cross_entropy(z, y))) ** 2 * _cross_entropy(z, y),
    "kinks": lambda z, y: F.multi_margin_loss(z, y, reduction="none") + z.abs().sum(1),
    "cancels": lambda z, y: 1e3 * (z.exp().sum(1).log() - z.logsumexp(1)) + z[:, 0] * 0,
    "zero": lambda z, y: z.sum(1) * 0,
}


@pytest.fixture
def given() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return model, torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))


@pytest.mark.parametrize("name", MIXING)
def test_losses_that_mix_samples_are_refused(name: str, given: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Spectra, damped inverses, second-order steps and linear dynamics answered for a loss that there is not."""
    model, x, y = given
    loss, before = MIXING[name], copy.deepcopy(model.state_dict())
    start = model(x).detach()
    calls: list[Callable[[], Any]] = [
        lambda: pb.curvature_spectrum(model, loss, (x, y)),
        lambda: pb.DampedInverse(model, loss, x, y, damping=0.1),
        lambda: pb.dynamics.LevenbergMarquardt(model, loss).step(x, y),
        lambda: pb.linear_dynamics(torch.eye(6), y, initial=start, loss=loss, time=1.0),
    ]
    for call in calls:
        with pytest.raises(pb.UnsupportedError, match="every sample on its own, got another .* than in the batch"):
            call()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OWN)
def test_losses_of_their_own_are_not(name: str, dtype: torch.dtype) -> None:
    passed = 0
    for scale in (1.0, 8.0):
        z, y = (scale * torch.randn(40, 5)).to(dtype), torch.randint(5, (40,))
        check_own_losses(OWN[name], z if dtype != torch.bfloat16 or name != "kinks" else z.float(), y, "call")
        passed += 1
    assert passed == 2


def test_one_sample_has_no_others() -> None:
    assert check_own_losses(MIXING["mean"], torch.randn(1, 3), torch.tensor([1]), "call") is None


def test_losses_without_a_derivative_are_refused(given: tuple[nn.Module, Tensor, Tensor]) -> None:
    """They ended in autograd's "element 0 of tensors does not require grad", or in a mean of integers."""
    model, x, y = given
    detached: Loss = lambda z, y: _cross_entropy(z.detach(), y)
    for call in (
        lambda: pb.GaussNewton(model, detached, (x, y)).to_dense(),
        lambda: pb.self_influence(model, detached, (x, y), damping=0.1),
        lambda: pb.TangentPath(model, detached, x, y),
        lambda: pb.train_side_by_side(model, detached, x, y, lambda p: torch.optim.SGD(p, lr=0.1), steps=1),
    ):
        with pytest.raises(
            pb.UnsupportedError, match=r"a loss that depends on the outputs, got none .* Check for detach"
        ):
            call()
    mistakes: Loss = lambda z, y: (z.argmax(1) != y).long()
    with pytest.raises(pb.InputError, match=r"losses of a floating dtype .* got torch.int64"):
        pb.Hessian(model, mistakes, (x, y))


@pytest.mark.parametrize("call", [pb.backward_kernel, pb.check_gradients, pb.DampedInverse])
def test_classes_and_missing_targets_are_refused(call: Any, given: tuple[nn.Module, Tensor, Tensor]) -> None:
    """The class of a loss was called as if it were the loss; no targets, or a list, ended in an attribute error."""
    model, x, y = given
    more = {"damping": 0.1} if call is pb.DampedInverse else {}
    with pytest.raises(
        pb.InputError, match=r"a loss module, .* got <class .*CrossEntropyLoss'>. Pass nn.CrossEntropyLoss\("
    ):
        call(model, nn.CrossEntropyLoss, x, y, **more)
    for targets, kind in ((None, "NoneType"), ([y], "list")):
        with pytest.raises(pb.InputError, match=f"targets that are one tensor for CrossEntropyLoss, got {kind}"):
            call(model, nn.CrossEntropyLoss(), x, targets, **more)
    with pytest.raises(pb.UnsupportedError, match="got the class CrossEntropyLoss"):
        pb.Fisher(model, nn.CrossEntropyLoss, (x, y))  # type: ignore[arg-type]


def test_damped_inverse_checks_its_targets(given: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Labels out of range and targets that broadcast were taken."""
    model, x, y = given
    with pytest.raises(pb.InputError, match="labels from 0 to 2, got 7"):
        pb.DampedInverse(model, nn.CrossEntropyLoss(), x, y.clone().fill_(7), damping=0.1)
    with pytest.raises(pb.InputError, match="targets of the outputs' shape"):
        pb.DampedInverse(model, nn.MSELoss(), x, x[:, :1], damping=0.1)
