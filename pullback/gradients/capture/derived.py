"""Rows of tensors computed from parameters, pulled back to those parameters.

A weight that is normalised, merged from adapters or looked up in a table of positions is the same for all samples.
Its own rows come from a rule; the derivative of the tensor in its parameters then takes them further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.gradients.capture.uses import Derived
from pullback.gradients.rows.contract import Tensors, full_precision
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.tokens import token_factor

_ROWS_AT_A_TIME = 64  # gradients pulled back by one vectorised backward pass


def taken_back(
    rule: str, factor: Factor, derived: list[Derived], shapes: dict[str, torch.Size]
) -> list[tuple[str, Factor]]:
    """Rule and factor of each parameter behind a factor some of whose rows are of derived tensors, named ``~k``."""
    built: list[tuple[str, Factor]] = []
    for name in factor.shapes:
        part = factor.only(name)
        if name.startswith("~"):
            built += [(f"derived {rule}", f) for f in pulled_back(part, name, derived[int(name[1:])], shapes)]
        else:
            built.append((rule, part))
    return built


def pulled_back(factor: Factor, key: str, derived: Derived, shapes: dict[str, torch.Size]) -> list[Factor]:
    """Factors of the parameters behind ``derived`` from the factor of its rows, which are filed under ``key``.

    Args:
        factor: rows of the derived tensor, (N, C, *shape).
        key: its name there.
        derived: the tensor, computed for a batch of one, with its graph.
        shapes: shapes of all parameters.
    """
    rows = factor.rows(slice(0, factor.num_samples))[key]
    if derived.table is not None:
        name, indices = derived.table
        tokens = indices.reshape(1, -1).expand(len(rows), -1)
        return [token_factor(name, shapes[name], tokens, rows.flatten(2, -2))]
    return [DenseFactor(_vjp(derived, rows, shapes), "dense")]


def _vjp(derived: Derived, rows: Tensor, shapes: dict[str, torch.Size]) -> Tensors:
    """Rows (N, C, *shape) of a derived tensor to parameter -> (N, C, *shape), a few at a time."""
    lead, flat = rows.shape[:2], rows.reshape(-1, *derived.value.shape).to(derived.value.dtype)
    parts = [_vjp_batch(derived, part, shapes) for part in flat.split(_ROWS_AT_A_TIME)]
    return {
        name: full_precision(torch.cat([part[k] for part in parts])).view(*lead, *shapes[name])
        for k, name in enumerate(derived.leaves)
    }


def _vjp_batch(derived: Derived, rows: Tensor, shapes: dict[str, torch.Size]) -> list[Tensor]:
    try:
        pulled = torch.autograd.grad(
            derived.value, derived.parameters, rows, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation whose derivative has no batching rule
        each = [
            torch.autograd.grad(derived.value, derived.parameters, row, retain_graph=True, allow_unused=True)
            for row in rows
        ]
        pulled = tuple(None if g[0] is None else torch.stack(g) for g in zip(*each, strict=True))  # type: ignore[misc]
    names = derived.leaves
    return [rows.new_zeros(len(rows), *shapes[n]) if g is None else g for n, g in zip(names, pulled, strict=True)]
