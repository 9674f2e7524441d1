"""Backward passes with one vector or a block of them, in flat coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pullback.functional import ModelView
from pullback.functional.model_view import even


def derivative(
    values: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor | None], batched: bool
) -> list[Tensor | None]:
    """Transposed derivative of ``values`` in ``inputs`` times ``vectors``; None where nothing arrives."""
    moving = [(v, u) for v, u in zip(values, vectors, strict=True) if v.requires_grad and u is not None]
    if not moving or not inputs:
        return [None] * len(inputs)
    ends, starts = zip(*moving, strict=True)
    reached: list[bool] = []

    def pull(*along: Tensor) -> tuple[Tensor, ...]:
        derivatives = torch.autograd.grad(ends, inputs, along, retain_graph=True, allow_unused=True)
        reached[:] = [f is not None for f in derivatives]
        return tuple(f for f in derivatives if f is not None)

    # not is_grads_batched, whose batching rules are fewer and loop over tanh, for example
    arrived = iter(torch.func.vmap(pull)(*starts) if batched else pull(*starts))
    return [next(arrived) if r else None for r in reached]


def unflatten(view: ModelView, vectors: Tensor) -> dict[str, Tensor]:
    """Vectors (K, P) -> name -> (K, *shape)."""
    pieces = vectors.split([p.numel() for p in view.parameters.values()], dim=1)
    named = [(each, even(piece, each[1].shape)) for each, piece in zip(view.parameters.items(), pieces, strict=True)]
    return {name: v.unflatten(1, p.shape) if p.dim() else v[:, 0] for (name, p), v in named}


def put_flat(derivatives: Sequence[Tensor | None], total: Tensor, view: ModelView, adding: bool) -> None:
    """Put one tensor a parameter into the rows (P,) or (K, P) they belong to, or add them."""
    pieces = total.split([p.numel() for p in view.parameters.values()], dim=-1)
    memory = total.untyped_storage().data_ptr()
    # whether the directions come back
    if any(part is not None and part.untyped_storage().data_ptr() == memory for part in derivatives):
        derivatives = [None if part is None else part.clone() for part in derivatives]
    for piece, part in zip(pieces, derivatives, strict=True):
        if not adding:
            piece.zero_() if part is None else piece.copy_(part.reshape(piece.shape))
        elif part is not None:
            piece.add_(part.reshape(piece.shape))


BLOCK_BYTES = 2**28  # of activations that the columns of one block may hold at a time


GRAPH_TO_FORWARD = 2  # a product holds about twice what the forward pass holds, for every column
