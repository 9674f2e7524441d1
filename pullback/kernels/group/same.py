"""Whether all processes of a group were given the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional.batch import tensors
from pullback.kernels.request import Request


def fingerprint(request: Request) -> dict[str, Any]:
    """What must be the same on all ranks: arguments, weights and data; the tensors as one number each."""
    sides = [request.rows] if request.columns is None else [request.rows, request.columns]
    data = [leaf for side in sides for batch in (side.x, side.y) for leaf in ([] if batch is None else tensors(batch))]
    models = [side.view.model for side in sides]
    weights = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return {
        "arguments": [
            request.where,
            request.options.contract,
            request.options.keep_layers,
            sorted((request.options.forms or {}).items()),
            [[side.count, list(side.view.parameters)] for side in sides],
        ],
        "weights": [_shapes(weights), digest(weights)],
        "data": [_shapes(data), digest(data)],
    }


def _shapes(of: Iterable[Tensor]) -> list[Any]:
    return [[list(t.shape), str(t.dtype)] for t in of]


def digest(of: Iterable[Tensor]) -> int:
    """One number for the bits of tensors: other bits give another, but for one case in about 2^64."""
    odd, result = 0x9E3779B97F4A7C15 - 2**64, 0
    for t in of:
        numbers = t.detach().reshape(-1).contiguous().view(torch.uint8)
        for stretch in numbers.split(2**23):
            words = torch.cat([stretch, stretch.new_zeros(-len(stretch) % 8)]).view(torch.int64)
            places = torch.arange(1, 2 * len(words), 2, device=t.device) * odd  # all odd: no bit of a word is lost
            result = (result * 6364136223846793005 + int((words * places).sum())) % 2**64
    return result


def compare(told: list[dict[str, Any]], where: str) -> None:
    """Refuses what one rank was given and another was not."""
    remedies = {
        "arguments": "Make the same call on every rank",
        "weights": "Broadcast the model from one rank first, as DistributedDataParallel does",
        "data": "Pass all samples on every rank: the call itself shares them out",
    }
    for what, remedy in remedies.items():
        if other := [rank for rank, each in enumerate(told) if each[what] != told[0][what]]:
            got = f"others on rank {other[0]} than on rank 0"
            raise input_error(where, f"the same {what} on all {len(told)} ranks", got, remedy)
