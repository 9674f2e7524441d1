"""Data sources that change, models that answer differently, and that nothing of the model is left changed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import _cur_sdpa_kernel_backends
from torch.utils.data import DataLoader, TensorDataset

import pullback as pb
from pullback.functional.differentiable import say_plain_attention
from tests.cases import CASES, build
from tests.compare import assert_same

OPERATORS: list[Callable[..., Any]] = [
    pb.Hessian,
    pb.GaussNewton,
    pb.Fisher,
    lambda *a: pb.Fisher(*a, kind="sampled"),
    lambda *a: pb.Fisher(*a, kind="empirical"),
]
LOSS = nn.CrossEntropyLoss()


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, 2)).double()


def points(n: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2


def test_a_loader_is_walked_again_and_not_copied() -> None:
    model, (x, y) = net(), points()
    walks = []

    class Rows(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            walks.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Rows(x, y), batch_size=4)
    for make in OPERATORS[:3]:
        op = make(model, LOSS, loader)
        assert_same(op.to_dense(), make(model, LOSS, (x, y)).to_dense(), 1e-12)
        walks.clear()
        op @ torch.ones(op.shape[1], dtype=torch.float64)
        assert walks == list(range(10))


@pytest.mark.parametrize("make", OPERATORS)
def test_sources_that_change_are_named(make: Callable[..., Any]) -> None:
    model, (x, y) = net(), points()
    message = "data that gives the same batches every time it is walked through, got"
    generator = ((x[i : i + 5], y[i : i + 5]) for i in (0, 5))
    with pytest.raises(pb.InputError, match=f"{message} no more batches at batch 0 the second time. Pass a list"):
        make(model, LOSS, generator)
    with pytest.raises(pb.InputError, match=f"{message} other samples at batch 0 the second time"):
        make(model, LOSS, DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True))

    class Growing:
        def __init__(self) -> None:
            self.walks = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.walks += 1
            yield from [(x, y)] * self.walks

    with pytest.raises(pb.InputError, match=f"{message} more batches at batch 1"):
        make(model, LOSS, Growing())

    class Turned:  # the same samples in another order: a loader that shuffles its only batch
        def __init__(self) -> None:
            self.walks = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.walks += 1
            yield (x, y) if self.walks == 1 else (x.flip(0), y.flip(0))

    with pytest.raises(pb.InputError, match=f"{message} other samples at batch 0 the second time"):
        make(model, LOSS, Turned())


def test_a_source_that_changes_later_is_named() -> None:
    model, (x, y) = net(), points()
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    op = pb.Hessian(model, LOSS, batches)
    v = torch.ones(op.shape[1], dtype=torch.float64)
    op @ v
    batches.pop()
    with pytest.raises(pb.InputError, match="got no more batches at batch 1 the second time"):
        op @ v
    alone = pb.Hessian(model, LOSS, (x, y))
    alone @ v
    x[3] += 1
    with pytest.raises(pb.InputError, match="got other samples at batch 0 the second time"):
        alone @ v


def test_what_is_no_data() -> None:
    model, (x, y) = net(), points()
    pairs = r"`data` as a tuple \(x, y\) or an iterable of pairs \(x, y\), got"
    for data, got in (
        (x, "a Tensor"),
        (3, "a int"),
        ([x, y], "a Tensor"),
        ((x, y, y), "a tuple of 3"),
        ([(x, y, y)], "a tuple of 3"),
        ([{"x": x}], "a dict"),
    ):
        with pytest.raises(pb.InputError, match=f"Hessian: expected {pairs} {got}"):
            pb.Hessian(model, LOSS, data)  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match=r"Hessian: expected at least one batch, got none. Pass \(x, y\)"):
        pb.Hessian(model, LOSS, [])


@pytest.mark.parametrize("make", OPERATORS)
def test_models_that_answer_differently_are_named(make: Callable[..., Any]) -> None:
    data = points()
    each = "a model that gives every sample an answer of its own, the same each time, got"
    with pytest.raises(pb.UnsupportedError, match=f"{each} dropout in train mode in layer `1`. Call model.eval()"):
        make(net(nn.Dropout(0.5)), LOSS, data)
    with pytest.raises(pb.UnsupportedError, match=f"{each} batch norm in train mode in layer `1`.*frozen_batch_norm"):
        make(net(nn.BatchNorm1d(4)), LOSS, data)
    with pytest.raises(pb.UnsupportedError, match=f"{each} batch norm without running statistics .*in layer `1`"):
        make(net(nn.BatchNorm1d(4, track_running_stats=False)).eval(), LOSS, data)
    make(net(nn.Dropout(0.0), nn.BatchNorm1d(4, affine=False).eval()), LOSS, data)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    with pytest.raises(pb.UnsupportedError, match="got other losses on batch 0 the second time. Call model.eval()"):
        make(net(Noisy()), LOSS, data)

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    with pytest.raises(pb.UnsupportedError, match="sample on its own, got another loss for sample 0 alone"):
        make(net(Centred()), LOSS, data)


def test_recurrent_and_attention_dropout_are_named() -> None:
    class Net(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.head = body, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x) if isinstance(self.body, nn.RNNBase) else self.body(x, x, x)
            return self.head(out[0][:, -1])

    data = torch.randn(3, 5, 4), torch.tensor([0, 1, 1])
    for body in (
        nn.GRU(4, 4, 2, dropout=0.1, batch_first=True),
        nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True),
    ):
        with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer `body`"):
            pb.GaussNewton(Net(body), LOSS, data)


def test_a_model_that_changes_later_is_named() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return x * (1 + (Counting.calls > 100))

    model, (x, y) = net(nn.Dropout(0.5), Counting()), points()
    model.eval()
    op = pb.Hessian(model, LOSS, [(x, y)])
    v = torch.ones(op.shape[1], dtype=torch.float64)
    op @ v
    model.train()
    with pytest.raises(pb.UnsupportedError, match="dropout in train mode in layer `1`"):
        op @ v
    model.eval()
    op @ v
    Counting.calls = 100
    with pytest.raises(pb.UnsupportedError, match="got other losses on batch 0 the second time"):
        op @ v


def snapshot(model: nn.Module) -> Any:
    return (
        {name: t.clone() for name, t in model.state_dict().items()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        [p._version for p in model.parameters()],
        [m.training for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        [len(p._backward_hooks or {}) for p in model.parameters()],
        torch.random.get_rng_state(),
        sorted(b.name for b in _cur_sdpa_kernel_backends()),
    )


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, tuple):
        return all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("name", ["conv2d", "sequence_first", "bags"])
def test_nothing_is_left_changed(name: str, make: Callable[..., Any]) -> None:
    """Weights, gradients, buffers, modes, hooks, random state, attention's backend: bit for bit, also after errors."""
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == name), 4)
    calls = []
    for p in model.parameters():
        p.grad = torch.ones_like(p)
        p.register_hook(lambda g: calls.append(1))
    before = snapshot(model)
    kept = copy.deepcopy(before)
    op = make(model, loss_fn, (x, y))
    op @ torch.randn(op.shape[1], 2, dtype=op.dtype, generator=torch.Generator().manual_seed(0))
    assert same(snapshot(model), kept)
    assert not calls

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.register_forward_hook(fail)
    op._kept = None
    with pytest.raises(KeyboardInterrupt):
        op @ torch.ones(op.shape[1], dtype=op.dtype)
    with pytest.raises(KeyboardInterrupt):
        make(model, loss_fn, (x, y))
    handle.remove()
    assert same(snapshot(model), kept)


def test_attention_s_backend_is_said_once_and_restored(caplog: pytest.LogCaptureFixture) -> None:
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == "sequence_first"), 2)
    say_plain_attention.cache_clear()
    with caplog.at_level(logging.WARNING, logger="pullback"):
        for _ in range(2):
            op = pb.Hessian(model, loss_fn, (x, y))
            op @ torch.ones(op.shape[1], dtype=torch.float64)
        pb.Hessian(net(), LOSS, points())
    said = [r.getMessage() for r in caplog.records if r.name == "pullback"]
    assert len(said) == 1
    assert said[0].startswith("Hessian: fused attention has no second derivative; products use torch's plain attention")


def test_half_a_network_on_float32() -> None:
    """The dtype follows the model; recurrent layers run without the library call that has one derivative only."""
    model, loss_fn, x, y = build(next(c for c in CASES if c.name == "recurrent"), 3, torch.float32)
    exact = build(next(c for c in CASES if c.name == "recurrent"), 3)
    op = pb.Hessian(model, loss_fn, (x, y))
    assert op.dtype == torch.float32
    assert_same(op.to_dense().double(), pb.Hessian(exact[0], exact[1], (exact[2], exact[3])).to_dense(), 1e-4)
