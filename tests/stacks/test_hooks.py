"""Hooks of the user: those that watch or change gradients in training see nothing of a kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.functional.unwrap import without_parameter_hooks
from tests.stacks.plain import LOSS, data, plain, unchanged


def watch(model: nn.Module, calls: list[str]) -> None:
    model.middle.weight.register_hook(lambda g: calls.append("hook"))


def halve(model: nn.Module, calls: list[str]) -> None:
    """As masks and clipping by hooks do."""

    def hook(g: Tensor) -> Tensor:
        calls.append("hook")
        return g / 2

    model.middle.weight.register_hook(hook)


def after_accumulation(model: nn.Module, calls: list[str]) -> None:
    """As optimisers fused into the backward pass do."""
    model.middle.weight.register_post_accumulate_grad_hook(lambda p: calls.append("hook"))


@pytest.mark.parametrize("register", [watch, halve, after_accumulation], ids=lambda f: f.__name__)
def test_hooks_on_parameters_are_for_training(register: Callable[[nn.Module, list[str]], None]) -> None:
    (x, y), calls = data(), []
    expected = pb.backward_kernel(plain(), LOSS, x, y)
    model = plain()
    register(model, calls)
    for call in (pb.backward_kernel, pb.GradientMatrix):
        with unchanged(model):
            found = call(model, LOSS, x, y)
    assert calls == []
    assert torch.equal(pb.backward_kernel(model, LOSS, x, y).total, expected.total)
    assert found.shape[0] == len(x)
    LOSS(model(x), y).backward()
    assert calls == ["hook"]


def test_hooks_on_parameters_of_a_computed_weight() -> None:
    """Weight norm: the gradient goes on to the parameters behind the weight."""
    (x, y), calls, model = data(), [], plain()
    nn.utils.parametrizations.weight_norm(model.middle)
    for p in model.parameters():
        p.register_hook(lambda g: calls.append("hook"))
    pb.backward_kernel(model, LOSS, x, y)
    assert calls == []


def test_forward_hooks_are_part_of_the_model() -> None:
    """What a hook makes of an output, the kernel is of."""
    x, y = data()
    hooked = plain()
    hooked.middle.register_forward_hook(lambda module, inputs, output: 2 * output)
    kernel = pb.backward_kernel(hooked, LOSS, x, y)
    G = torch.stack([flat_gradient(hooked, x[[i]], y[[i]]) for i in range(len(x))])
    assert torch.allclose(kernel.total, G @ G.T, rtol=1e-10)
    assert not torch.allclose(kernel.total, pb.backward_kernel(plain(), LOSS, x, y).total, rtol=1e-2)


def flat_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(LOSS(model(x), y), list(model.parameters()))])


def test_hooks_are_back_after_an_error() -> None:
    model, calls = plain(), []
    watch(model, calls)

    def fail() -> None:
        with without_parameter_hooks(model):
            LOSS(model(data()[0]), data()[1]).backward()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert calls == []
    LOSS(model(data()[0]), data()[1]).backward()
    assert calls == ["hook"]
