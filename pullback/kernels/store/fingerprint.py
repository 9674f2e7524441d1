"""Fingerprints of data, weights and losses, which tell whether two runs mean the same matrix."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from pullback.functional import LossFunction, ModelView
from pullback.functional.batch import tensors
from pullback.kernels.store.factor_files import without_addresses


def digest(batch: Any) -> str:
    """Hash of the tensors of a batch: their bytes, dtypes and shapes. SHA-256, which processors have built in."""
    hasher = hashlib.sha256()
    for tensor in tensors(batch):
        hasher.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:32]


def fingerprint(view: ModelView, loss_fn: LossFunction) -> dict[str, Any]:
    """What a store was made of apart from its data; every part is compared, and named if it differs.

    Functions have no content to hash that outlives a version of Python: they are known by their names.
    """
    model = view.model
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    return {
        "weights": {name: digest(tensor) for name, tensor in weights.items()},
        "model": hashlib.sha256(without_addresses(model).encode()).hexdigest()[:32],
        "loss": _loss_text(loss_fn),
        "params": list(view.parameters),
    }


def _loss_text(loss_fn: LossFunction) -> str:
    if not isinstance(loss_fn, nn.Module):
        name = getattr(loss_fn, "__qualname__", None)
        return f"{loss_fn.__module__}.{name}" if name else without_addresses(loss_fn)
    settings = {k: v for k, v in sorted(vars(loss_fn).items()) if isinstance(v, int | float | str) and k[0] != "_"}
    settings.pop("training", None)
    state = digest(list(loss_fn.state_dict().values()))
    return f"{type(loss_fn).__qualname__}({without_addresses(loss_fn)}, {settings}, {state})"


def first_difference(stored: dict[str, Any], asked: dict[str, Any]) -> tuple[str, str, str] | None:
    """What differs between two fingerprints: its name, what the store has, and what the call has."""
    for key, old in stored.items():
        new = asked.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return key, f"`{names[0]}`{more}", "other numbers"
        return key, str(old), str(new)
    return None
