"""What has to be equal between a training that was watched and one that was not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pullback as pb

PROBES = ("loss", "gradients", "kernel", "alignment", "flow")


def state(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Weights, buffers, optimizer states, gradients, and the global random state."""
    moments = [
        t for optimizer in optimizers for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)
    ]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [t.clone() for t in (*model.state_dict().values(), *moments, *gradients, torch.get_rng_state())]


def assert_same_to_the_bit(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 1
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(bits(a), bits(b))


def bits(t: Tensor) -> Tensor:
    """The bytes of a tensor: NaN is equal to itself, 0 is not equal to -0."""
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_untouched(model: nn.Module) -> None:
    """No hook is left on any module or parameter."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not [module for module in model.modules() for kind in kinds if getattr(module, kind)]
    assert not [p for p in model.parameters() if p._backward_hooks]


def read(folder: Path, steps: list[int], probes: Iterable[str] = PROBES) -> pb.Run:
    """The run, in which every probe measured at these steps and none failed."""
    run = pb.load_run(folder)
    assert [record.error for record in run.records if record.error] == []
    for probe in probes:
        assert [record.step for record in run.of(probe)] == steps, probe
    return run


def options(**others: Any) -> dict[str, Any]:
    """Of a monitor that measures whenever it is due."""
    return {"every": 2, "budget": None} | others
