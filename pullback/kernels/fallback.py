"""Gradient rows of parameters no rule covers: vmap over per-sample gradients, or a loop where vmap cannot go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pullback.functional import LossFunction, ModelView, num_samples, take
from pullback.functional.batch import Batch, plain, quiet_vmap
from pullback.functional.losses import unchecked_loss
from pullback.kernels.factors import DenseFactor


def fallback_rows(
    view: ModelView, loss_fn: LossFunction, names: tuple[str, ...], x: Batch, y: Batch, where: str
) -> DenseFactor:
    """Rows of the parameters in ``names``, (N, *shape) each, from gradients of batches of one."""
    try:
        with quiet_vmap():
            rows = _by_vmap(view, loss_fn, names, x, y, where)
    except (RuntimeError, NotImplementedError):  # no batching rule, data-dependent control flow
        rows = _by_loop(view, loss_fn, names, x, y, where)
    return DenseFactor(rows, "fallback")


def _by_vmap(
    view: ModelView, loss_fn: LossFunction, names: tuple[str, ...], x: Batch, y: Batch, where: str
) -> dict[str, Tensor]:
    fixed = {n: p.detach() for n, p in view.model.named_parameters()}
    chosen = {n: fixed.pop(n) for n in names}

    def loss(parameters: dict[str, Tensor], x_i: Batch, y_i: Batch) -> Tensor:
        outputs = view(take(x_i, None), fixed | parameters)
        return unchecked_loss(loss_fn, outputs, take(y_i, None), where)[0]

    count = num_samples(x)
    per_sample = max(1, view.num_params)
    chunk = max(1, min(count, 2**26 // per_sample))  # near 256 MB of float32 gradients at a time
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, _axes(x), _axes(y)), chunk_size=chunk)(
        chosen, plain(x), plain(y)
    )
    return {name: g.detach() for name, g in gradients.items()}


def _by_loop(
    view: ModelView, loss_fn: LossFunction, names: tuple[str, ...], x: Batch, y: Batch, where: str
) -> dict[str, Tensor]:
    parameters = [view.parameters[name] for name in names]
    rows: list[list[Tensor]] = []
    with torch.enable_grad():
        for i in range(num_samples(x)):
            loss = unchecked_loss(loss_fn, view(take(x, [i])), take(y, [i]), where)[0]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)])
    return {name: torch.stack(each) for name, each in zip(names, zip(*rows, strict=True), strict=True)}


def _axes(batch: Batch) -> Any:
    """The vmapped axis of every leaf: 0 for tensors, none for the rest."""
    return tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, plain(batch))
