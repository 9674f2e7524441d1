"""What a step is handed: a batch, a closure that evaluates the loss, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional.batch import Batch

Closure = Callable[[], Any]


@dataclass
class _Watched:
    """Inputs the model was called with, targets the loss was."""

    inputs: list[Batch] = field(default_factory=list)
    targets: list[Batch] = field(default_factory=list)
    mixed: bool = False  # inputs in order and by keyword, which no batch can say

    def of_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        plain = args[0] if len(args) == 1 else args
        self.inputs.append((args, kwargs) if args and kwargs else kwargs or plain)
        self.mixed = bool(args and kwargs)

    def of_loss(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args[1:], *(kwargs[name] for name in ("target", "targets", "y") if name in kwargs)]
        self.targets += given[:1]


def run_closure(closure: Closure, where: str) -> Tensor:
    """The loss a closure returns, which also fills ``.grad``, as torch has it."""
    with torch.enable_grad():
        loss = closure()
    if not isinstance(loss, Tensor | float) or (isinstance(loss, Tensor) and loss.numel() != 1):
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise input_error(where, "a closure that returns the loss, one number", got, "End it with `return loss`")
    return torch.as_tensor(loss).detach().reshape(())


def run_watched(closure: Closure, model: nn.Module, loss_fn: Any, where: str) -> tuple[Tensor, Batch, Batch]:
    """``run_closure``, and the batch it handed to the model and the loss, seen by hooks that are gone afterwards."""
    if not isinstance(loss_fn, nn.Module):
        got = "a closure alone, and a `loss_fn` that is no module"
        remedy = f"Call {where}(x, y, closure=closure)"
        raise input_error(where, "the batch, which curvature is measured on", got, remedy)
    watched = _Watched()
    handles = [
        model.register_forward_pre_hook(watched.of_model, with_kwargs=True),
        loss_fn.register_forward_pre_hook(watched.of_loss, with_kwargs=True),
    ]
    try:
        loss = run_closure(closure, where)
    finally:
        for handle in handles:
            handle.remove()
    if len(watched.inputs) != 1 or len(watched.targets) != 1 or watched.mixed:
        got = f"{len(watched.inputs)} calls of the model and {len(watched.targets)} of the loss"
        remedy = f"Pass the batch too, {where}(x, y, closure=closure)"
        raise input_error(where, "a closure that calls `model` and `loss_fn` once each", got, remedy)
    return loss, watched.inputs[0], watched.targets[0]
