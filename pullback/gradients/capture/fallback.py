"""Gradient rows of parameters no rule covers: vmap over per-sample gradients, or a loop where vmap cannot go."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.functional import ModelView, num_samples, take
from pullback.functional.agreement import tolerance
from pullback.functional.batch import Batch, filled, quiet_vmap, tensors
from pullback.functional.readout import Readout, combination
from pullback.functional.saved_tensors import autograd_in_words
from pullback.gradients.capture.uses import Capture
from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor


def fallback_rows(
    view: ModelView,
    readout: Readout,
    names: tuple[str, ...],
    data: tuple[Batch, Batch],
    run: Capture,
    dtype: torch.dtype,
    where: str,
) -> DenseFactor:
    """Rows of the parameters in ``names``, (N, C, *shape) each, from batches of one.

    A loss that holds parameters itself, or a model that is called in it, is not seen by vmap: its rows do not add up
    to the ordinary gradient then, and the loop is taken.

    Args:
        view: of the model.
        readout: the values whose gradients are asked for.
        names: the parameters.
        data: inputs and targets, (N, ...).
        run: their capture, whose values and ordinary gradient rows are compared with.
        dtype: what the forward pass computed in, at its loosest.
        where: the caller.
    """
    (x, y), values = data, run.values
    if values.device.type == "meta":
        shapes = {name: view.parameters[name].shape for name in names}
        return DenseFactor(
            {name: values.new_empty(*values.shape, *shape) for name, shape in shapes.items()}, "fallback"
        )
    try:
        with quiet_vmap():
            rows = _by_vmap(view, readout, names, x, y, where, torch.eye(values.shape[1], device="cpu").to(values))
    except (RuntimeError, ValueError, TypeError, IndexError):  # no batching rule, or one that is wrong; control flow
        rows = None
    if rows is None or not all(_adds_up(row, run.ordinary.get(name), dtype) for name, row in rows.items()):
        rows = _by_loop(view, readout, names, x, y, where)
    return DenseFactor({name: full_precision(row) for name, row in rows.items()}, "fallback")


def _adds_up(rows: Tensor, ordinary: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the combination of all rows (N, C, *shape) is the ordinary gradient."""
    summed = torch.einsum("nc...,c->...", rows, combination(rows.shape[1], rows))
    error = torch.linalg.vector_norm(summed if ordinary is None else summed - ordinary)
    return bool(error <= tolerance(dtype) * torch.linalg.vector_norm(rows) * math.sqrt(rows.shape[0] * rows.shape[1]))


def _by_vmap(
    view: ModelView, readout: Readout, names: tuple[str, ...], x: Batch, y: Batch, where: str, unit: Tensor
) -> dict[str, Tensor]:
    fixed = {n: p.detach() for n, p in view.model.named_parameters()}
    chosen = {n: fixed.pop(n) for n in names}

    def values(parameters: dict[str, Tensor], x_i: list[Tensor], y_i: list[Tensor]) -> Tensor:
        outputs = view(take(filled(x, x_i), None), fixed | parameters)
        return readout.values(outputs, take(filled(y, y_i), None), where)[0]

    def one(parameters: dict[str, Tensor], x_i: list[Tensor], y_i: list[Tensor]) -> Any:
        _, vjp, *_ = torch.func.vjp(lambda p: values(p, x_i, y_i), parameters)
        each = [vjp(row)[0] for row in unit]  # a vmap inside the outer one is wrong for some of torch's derivatives
        return {name: torch.stack([g[name] for g in each]) for name in names}

    count = num_samples(x)
    numbers = len(unit) * sum(p.numel() for p in chosen.values())
    chunk = max(1, min(count, 2**26 // max(1, numbers)))  # near 256 MB of float32 gradients at a time
    gradients = torch.func.vmap(one, in_dims=(None, 0, 0), chunk_size=chunk)(chosen, tensors(x), tensors(y))
    return {name: g.detach() for name, g in gradients.items()}


def _by_loop(
    view: ModelView, readout: Readout, names: tuple[str, ...], x: Batch, y: Batch, where: str
) -> dict[str, Tensor]:
    parameters = [view.parameters[name] for name in names]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with torch.enable_grad(), autograd_in_words(where):
        for i in range(num_samples(x)):
            values = readout.values(view(take(x, [i])), take(y, [i]), where)[0]
            each = [torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in values]
            for name, p, found in zip(names, parameters, zip(*each, strict=True), strict=True):
                rows[name].append(torch.stack([torch.zeros_like(p) if g is None else g.to_dense() for g in found]))
    return {name: torch.stack(parts) for name, parts in rows.items()}
