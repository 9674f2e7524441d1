"""``frozen_batch_norm``: the statistics of one batch, as constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.compare import TOLERANCE, assert_different, assert_same

CE = nn.CrossEntropyLoss()


def conv() -> nn.Module:
    """Two dimensions, none, and a residual path: statistics of later layers depend on earlier ones."""
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.BatchNorm2d(3))
    return nn.Sequential(body, nn.Flatten(), nn.Linear(27, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3))


def sequence() -> nn.Module:
    """Three axes, three dimensions, and a layer without running statistics."""
    return nn.Sequential(
        nn.Unflatten(2, (3, 3, 4)),
        nn.BatchNorm3d(2, momentum=None),
        nn.Flatten(2),
        nn.Conv1d(2, 3, 5, stride=4),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def made(make: Any, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    model = make().to(dtype)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eps = 0.1  # large, so that a wrong place for it shows
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2.0)
                nn.init.normal_(layer.bias)
    shape = (6, 2, 6, 6) if make is conv else (6, 2, 36)
    return model, torch.randn(shape, dtype=dtype) * 2 + 1, torch.arange(6) % 3


def state(model: nn.Module) -> list[Any]:
    """Identity and values of everything the block might change."""
    tensors = [(name, id(b), b.clone()) for name, b in model.named_buffers()]
    modes = [(m.training, dict(m._buffers).keys(), len(m._forward_pre_hooks)) for m in model.modules()]
    return [tensors, modes, [p.grad for p in model.parameters()], torch.get_rng_state()]


def assert_unchanged(before: list[Any], after: list[Any]) -> None:
    for (name, place, value), (other, where, now) in zip(before[0], after[0], strict=True):
        assert (name, place) == (other, where)
        assert torch.equal(value, now)
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", [conv, sequence])
def test_outputs_are_those_of_train_mode(make: Any, dtype: torch.dtype, mode: bool) -> None:
    """Whatever mode the layers are in before."""
    model, x, _ = made(make, dtype)
    with torch.no_grad():
        model.train()
        model(x)  # running statistics that are not the batch's
        expected = model(x + 0.0)
        running = model.eval()(x) if make is conv else None
        model.train(mode)
        before = state(model)
        with pb.frozen_batch_norm(model, x):
            found = model(x)
            half = model(x[:3])
            assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        assert_same(found, expected, TOLERANCE[dtype] / 10)
        assert_same(half, expected[:3], TOLERANCE[dtype] / 10)  # samples are no longer coupled
        if running is not None:
            assert_different(running, expected, 0.05)
    assert_unchanged(before, state(model))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("make", [conv, sequence])
def test_kernels_equal_the_loop(make: Any, mode: bool) -> None:
    """Inside the block each sample has a gradient of its own; on the batch and on other data."""
    model, x, y = made(make)
    model.train(mode)
    other = torch.randn_like(x)
    before = state(model)
    with pb.frozen_batch_norm(model, x):
        for data in (x, other):
            kernel = pb.backward_kernel(model, CE, data, y)
            assert_same(kernel.total, reference.total_kernel(model, CE, data, y))
            assert not [layer for layer in kernel.plan.layers if layer.form == "fallback"]
        g, h = reference.gradient_matrix(model, CE, x, y), reference.gradient_matrix(model, CE, other, y)
        assert_same(pb.backward_kernel(model, CE, x, y, x2=other, y2=y).total, g @ h.T)
    assert_unchanged(before, state(model))
    if mode:
        with pytest.raises(pb.UnsupportedError, match="batch norm in train mode .* or pb.frozen_batch_norm"):
            pb.backward_kernel(model, CE, x, y)


def test_it_is_not_the_gradient_of_training() -> None:
    """That one passes through mean and variance: what the docstring warns of."""
    model, x, y = made(conv)
    parameters = list(model.parameters())
    training = torch.autograd.grad(CE(model.train()(x), y), parameters)
    with pb.frozen_batch_norm(model, x):
        frozen = torch.autograd.grad(CE(model(x), y), parameters)
    assert_same(frozen[-1], training[-1])  # after the last normalisation they agree
    assert_different(frozen[0], training[0], 0.01)


def test_restored_after_an_exception() -> None:
    model, x, _ = made(conv)
    before = state(model)
    with pytest.raises(ZeroDivisionError), pb.frozen_batch_norm(model, x):
        _ = 1 / 0
    assert_unchanged(before, state(model))
    with pytest.raises(RuntimeError), pb.frozen_batch_norm(model, x[:, :1]):
        pass
    assert_unchanged(before, state(model))
    broken = nn.Sequential(nn.BatchNorm2d(2).double(), nn.Flatten(), nn.Linear(5, 5).double())
    before = state(broken)
    with pytest.raises(RuntimeError), pb.frozen_batch_norm(broken, x):  # after the layer's statistics are taken
        pass
    assert_unchanged(before, state(broken))


def test_other_layers_keep_their_modes() -> None:
    """Dropout stays as the caller has it, and random numbers are not used up."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.BatchNorm1d(5))
    x, before = torch.randn(8, 4), torch.get_rng_state()
    with pb.frozen_batch_norm(model, x):
        assert model[1].training
        assert not model[2].training
        assert torch.equal(torch.get_rng_state(), before)
    assert model[2].training


def test_nested_and_partly_reached() -> None:
    """The inner batch counts inside, the outer one again after it; layers not reached are left alone."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, values: Tensor) -> Tensor:
            return self.used(input=values)

    model, x, other = Branches(), torch.randn(8, 3), torch.randn(5, 3) + 3
    with torch.no_grad(), pb.frozen_batch_norm(nn.DataParallel(model), {"values": x}):
        outer = model(x)
        assert model.unused.training
        with pb.frozen_batch_norm(model, other):
            assert_same(model(other).mean(0), torch.zeros(3), 1e-5, scale=1.0)
            assert_different(model(x), outer, 0.5)
        assert torch.equal(model(x), outer)
    assert_same(outer, model(x).detach())


def test_half_precision() -> None:
    model, x, _ = made(conv, torch.bfloat16)
    with torch.no_grad():
        expected = model.train()(x)
        with pb.frozen_batch_norm(model, x):
            assert model[0][1].running_var.dtype == torch.bfloat16
            assert_same(model(x).float(), expected.float(), 0.05)


def test_refused() -> None:
    x = torch.randn(4, 3)
    layer = nn.BatchNorm1d(3)
    for model, data, kind, message in (
        (nn.Linear(3, 3), x, pb.InputError, "a model with batch-norm layers, got none. Call the model without this"),
        (lambda z: z, x, pb.InputError, "`model` to be an nn.Module, got function"),
        (layer, x[:0], pb.InputError, "`x` with at least one sample"),
        (layer, x[:1], pb.InputError, r"more than one value per channel in layer ``, got \(1, 3\). Pass a larger"),
        (
            nn.Sequential(layer, nn.Tanh(), layer),
            x,
            pb.UnsupportedError,
            "batch-norm layers that are called once in a forward pass, got `0` a second time. Give each call a layer",
        ),
    ):
        with pytest.raises(kind, match=f"frozen_batch_norm: expected {message}"), pb.frozen_batch_norm(model, data):
            pass
    assert not layer._forward_pre_hooks
    assert layer.training
