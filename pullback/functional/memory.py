"""Bytes of a batch, and of what a forward pass keeps for its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pullback.functional import ModelView
from pullback.functional.batch import Batch, tensors
from pullback.functional.readout import Readout


def graph_bytes(view: ModelView, readout: Readout, x: Batch, y: Batch, where: str) -> int:
    """Bytes autograd keeps between a forward and a backward pass, and again the largest: its gradient on the way.

    Parameters are left out. Of a model that uses torch.func, which bears no hooks on what is saved, all that is made
    counts.
    """
    own = {p.untyped_storage()._cdata for p in view.model.parameters()}  # on the meta device all data is at 0
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in own:  # views may be of the whole data set: only they count
            held[key] = max(held.get(key, 0), min(storage.nbytes(), tensor.numel() * tensor.element_size()))
        return tensor

    try:
        with torch.enable_grad(), saved_tensors_hooks(keep, lambda t: t):
            values = readout(view(x), y, where)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        with torch.enable_grad(), _Made() as made:
            values = readout(view(x), y, where)
        return made.bytes
    del values
    return sum(held.values()) + max(held.values(), default=0)


class _Made(TorchDispatchMode):
    """Counts the bytes of everything that is computed."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.bytes += sum(t.numel() * t.element_size() for t in tree_leaves(output) if isinstance(t, Tensor))
        return output


def data_bytes(x: Batch, y: Batch) -> int:
    """Bytes of a batch."""
    return sum(t.numel() * t.element_size() for batch in (x, y) for t in tensors(batch))
