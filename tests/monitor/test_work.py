"""What a probe says that it costs, against the multiplications its run really makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pullback.functional import undisturbed
from pullback.kernels import KernelSeries
from pullback.monitor.probes import PROBES, Observation, Probe
from pullback.monitor.probes.work import KERNEL_FIRST, Work
from pullback.monitor.recognised import Recogniser

CE = nn.CrossEntropyLoss()
SMALL = 0.35  # of a pass a sample, where a probe says that it makes none: products of the kernel's own rows


def multiplications(call: Callable[[], Any]) -> int:
    """Of matrix products and convolutions, in both directions, however they are nested."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(3) for layer in (nn.Linear(192, 192), nn.LayerNorm(192), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(192, 4)), torch.randn(16, 192)


def conv_net() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    return model, torch.randn(16, 8, 6, 6)


def attention() -> tuple[nn.Module, Tensor]:
    block = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.0, batch_first=True)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(256, 4)), torch.randn(16, 4, 64)


CASES = [
    (mlp, torch.optim.SGD, 16),
    pytest.param(conv_net, torch.optim.Adam, 8, marks=pytest.mark.slow),
    pytest.param(attention, torch.optim.SGD, 8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "optimizer", "count"), CASES)
def test_declared_passes(network: Callable[[], tuple[nn.Module, Tensor]], optimizer: Any, count: int) -> None:
    """No probe makes more than it says, nor a small part of it; a pass is what the training makes of one sample."""
    torch.manual_seed(0)
    model, x = network()
    y = torch.arange(len(x)) % 4
    chosen = optimizer(model.parameters(), 0.01)
    one = multiplications(lambda: CE(model(x), y).backward()) / len(x)
    chosen.step()
    kernels = KernelSeries(model, CE)
    seen = Observation(model, CE, x[:count], y[:count], chosen, None, kernels.rows, memory={}, pairs=True)
    with undisturbed(model, training=False):
        first = multiplications(lambda: seen.kernel) / one
        again = multiplications(lambda: kernels(seen.x, seen.y)) / one
        assert count <= first <= (1 + SMALL) * count + KERNEL_FIRST
        assert count <= again <= (1 + SMALL) * count
        _ = seen.alignment
        for probe in PROBES.values():
            if not probe.at_start:
                assert_work_is_known(probe, seen, count, one)


def assert_work_is_known(probe: Probe, seen: Observation, count: int, one: float) -> None:
    for _ in range(1 if probe.sparse else 2):  # what some do once is declared for the first time only
        work = probe.work if isinstance(probe.work, Work) else probe.work(seen)
        declared = work.of(count)
        made = multiplications(lambda: probe.measure(seen)) / one
        assert made <= declared + SMALL * count, (probe.name, made, declared)
        assert made >= declared / 8 or declared <= 2 * count, (probe.name, made, declared)
    if probe.extra is not None:
        extra = probe.extra
        assert multiplications(lambda: extra(seen)) / one <= SMALL * count, probe.name


def test_passes_of_reading_a_batch() -> None:
    """Half a pass for every sample that goes through the model, and no less than is made."""
    torch.manual_seed(0)
    for network in (mlp, conv_net, attention):
        model, x = network()
        y, seen = torch.arange(len(x)) % 4, []
        hook = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))  # noqa: B023
        for count in (1, 3, 16):
            reader = Recogniser(model, CE)
            assert sum(seen) / 2 <= reader.expected(count, 16)
            reader(x[:count], y[:count], 16)
            assert reader.passes == sum(seen) / 2 > 0
            assert reader.expected(count, 16) == (0 if count > 1 else 1.5)  # of one sample nothing is certain
            seen.clear()
            reader(x[:count], y[:count], 16)
            assert reader.passes == sum(seen) / 2 == (0 if count > 1 else 1)
            seen.clear()
        hook.remove()
        forward, both = (multiplications(call) for call in (lambda: model(x), lambda: CE(model(x), y).backward()))  # noqa: B023
        assert forward <= both / 2


def test_work_of_so_many_samples() -> None:
    work = Work(2.0, fixed=10.0, most=8)
    assert [work.of(n) for n in (1, 8, 20)] == [12.0, 26.0, 26.0]
    assert [work.affordable(p, 20) for p in (9.0, 12.0, 15.9, 100.0)] == [0, 1, 2, 8]
    assert work.affordable(100.0, 5) == 5
    assert work.affordable(math.inf, 20) == 8
    assert (Work(fixed=3.0).affordable(2.9, 7), Work(fixed=3.0).affordable(3.0, 7)) == (0, 7)
    assert Work().is_free
    assert not work.is_free
