"""What a call costs, whatever machine it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ATEN = torch.ops.aten
FACTORISATIONS = {ATEN._linalg_eigh: 9, ATEN.linalg_cholesky_ex: 1 / 3, ATEN._linalg_solve_ex: 2 / 3}  # times n^3


def operations(call: Callable[[], object]) -> float:
    """Floating-point operations of products (torch's own count) and of factorisations of matrices in a call."""
    with _Work() as work:
        call()
    return work.operations


class _Work(TorchDispatchMode):
    """Adds up; torch's own counter leaves factorisations out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=out)
        elif (factor := FACTORISATIONS.get(function._overloadpacket)) is not None:
            self.operations += factor * args[0].numel() * args[0].shape[-1]
        return out
