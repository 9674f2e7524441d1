"""A network beside its Taylor model: S4-07, what closes as it gets wider, and what the closed form says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb

F64 = torch.float64


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F64)


def sgd(lr: float, momentum: float = 0.0) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def network(width: int, seed: int = 0) -> nn.Module:
    return pb.modules.WideNetwork(3, [width], "tanh", seed=seed, dtype=F64).eval()


X, Y, X2 = drawn(6, 3), drawn(6, 1), drawn(4, 3, seed=2)


def test_both_are_trained_as_a_loop_trains_them() -> None:
    model = network(16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = pb.train_side_by_side(model, nn.MSELoss(), X, Y, sgd(0.2, 0.5), steps=7, every=3, x_test=X2)
    assert isinstance(found, pb.SideBySide)
    assert found.steps == (0, 3, 6, 7)
    for module, outputs, test, losses, moved, trained in (
        (network(16), found.network, found.test_network, found.losses, found.moved, found.trained[0]),
        (pb.linearize(network(16)), found.expansion, found.test_expansion, found.expansion_losses,
         found.expansion_moved, found.trained[1]),
    ):  # fmt: skip
        optimizer = sgd(0.2, 0.5)(module.parameters())
        start = torch.cat([p.detach().reshape(-1).clone() for p in module.parameters()])
        place = 0
        for step in range(8):
            loss = ((module(X) - Y) ** 2).mean()
            if step in found.steps:
                torch.testing.assert_close(outputs[place], module(X).detach())
                torch.testing.assert_close(test[place], module(X2).detach())
                torch.testing.assert_close(losses[place], loss.detach())
                now = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
                torch.testing.assert_close(moved[place], (now - start).norm())
                place += 1
            if step < 7:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        torch.testing.assert_close(trained(X), module(X))
    gap = (found.network - found.expansion)[:, :, 0]
    torch.testing.assert_close(found.distance, gap.square().mean(1).sqrt())
    torch.testing.assert_close(
        found.test_distance, (found.test_network - found.test_expansion)[..., 0].square().mean(1).sqrt()
    )
    come = (found.expansion - found.expansion[0])[:, :, 0].square().mean(1).sqrt()
    torch.testing.assert_close(found.relative_distance[1:], found.distance[1:] / come[1:])
    assert found.relative_distance[0] == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_closed_form_is_the_training_of_the_linear_model() -> None:
    model = network(32)
    kernel, cross = pb.tangent_kernel(model, X), pb.tangent_kernel(model, X2, x2=X)
    lr = 0.4 * pb.linear_dynamics(kernel, Y).max_lr
    found = pb.train_side_by_side(
        model, lambda f, y: ((f - y) ** 2).sum(1) / 2, X, Y, sgd(lr, 0.6), steps=40, every=20, x_test=X2
    )
    closed = pb.linear_dynamics(
        kernel, Y, cross=cross, initial=model(X), cross_initial=model(X2), lr=lr, momentum=0.6, time=found.steps
    )
    assert float((closed.train - found.expansion).abs().max()) < 1e-6
    assert float((closed.test - found.test_expansion).abs().max()) < 1e-6


def test_the_distance_falls_with_the_width() -> None:
    """S4-07: slope of log |f - f_lin| against log width at most -0.4."""
    widths, distances = (32, 128, 512), []
    for width in widths:
        over = [
            pb.train_side_by_side(network(width, seed), nn.MSELoss(), X, Y, sgd(0.5), steps=30, every=30).distance[-1]
            for seed in range(3)
        ]
        distances.append(float(torch.stack(over).mean()))
    slope = np.polyfit(np.log(widths), np.log(distances), 1)[0]
    assert slope <= -0.4, distances


def test_a_quadratic_model_stays_nearer() -> None:
    far = {
        order: pb.train_side_by_side(
            network(64), nn.MSELoss(), X, Y, sgd(0.05), steps=3, every=3, order=order
        ).distance[-1]
        for order in (1, 2)
    }
    assert far[2] < 0.3 * far[1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(steps=0), pb.InputError, r"train_side_by_side: expected `steps` at least 1, got 0"),
        (lambda: run(every=1.5), pb.InputError, r"train_side_by_side: expected `every` at least 1, got 1.5"),
        (lambda: run(y=Y[:, 0]), pb.InputError, r"train_side_by_side: expected targets of the outputs' shape"),
        (lambda: run().test_distance, pb.InputError, r"test_distance: expected test samples, got none. Pass x_test="),
        (
            lambda: run(model=nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5))),
            pb.UnsupportedError,
            r"taylor_expand: expected a model in eval mode, got `1` \(Dropout\) in train mode",
        ),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def run(model: nn.Module | None = None, y: Tensor = Y, **options: Any) -> pb.SideBySide:
    options = {"steps": 2, "every": 1} | options
    return pb.train_side_by_side(model or network(4), nn.MSELoss(), X, y, sgd(0.1), **options)
