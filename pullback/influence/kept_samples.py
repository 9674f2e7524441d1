"""The training samples that count most, kept with the influences: a table of numbers alone says little."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pullback._checks import input_error
from pullback.functional import num_samples, take
from pullback.functional.batch import mapped
from pullback.functional.batches import Data

MOST_KEPT = 20


def effects(values: Tensor, axis: int | None) -> Tensor:
    """One number for each training sample, (n,): its influence, or the root of the summed squares of its many.

    Raises:
        InputError: no axis counts training samples.
    """
    if axis is None:
        remedy = "Read `values`, one for each query"
        raise input_error("Influence", "a perturbation of training samples", "one of the weight decay", remedy)
    each = values.detach().movedim(axis, 0).flatten(1) if values.dim() > 1 else values.detach().unsqueeze(1)
    return each.squeeze(1) if each.shape[1] == 1 else each.square().sum(1).sqrt()


def ranking(values: Tensor, axis: int | None) -> list[int]:
    """Samples by the size of their effect, largest first; those that are no numbers before all."""
    sizes = effects(values, axis).abs().nan_to_num(nan=float("inf"))
    return sizes.argsort(descending=True, stable=True).tolist()


def kept_samples(values: Tensor, axis: int | None, data: Data) -> Mapping[int, tuple[Any, Any]]:
    """Inputs and targets of the samples with the largest effects, by their place in the data: copies on the CPU."""
    if axis is None:
        return {}
    best, start = ranking(values, axis)[:MOST_KEPT], 0
    samples: dict[int, tuple[Any, Any]] = {}
    for x, y in [data] if isinstance(data, tuple) else data:
        size = num_samples(x)
        for place in best:
            if start <= place < start + size:
                alone = slice(place - start, place - start + 1)
                samples[place] = (mapped(_kept, take(x, alone)), mapped(_kept, take(y, alone)))
        start += size
    return {place: samples[place] for place in best if place in samples}


def _kept(leaf: Tensor) -> Tensor:
    return leaf[0].detach().cpu().clone()
