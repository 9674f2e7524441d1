"""The networks a measurement runs through: one as it is, or several that are drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pullback._checks import input_error
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.measure.specs import NetworkSpec

DATA = 2**40  # added to the seed of a network for its inputs, masks and read-out, which must not repeat its weights
Redraw = Callable[[nn.Module, int], object]


def num_networks(model_or_spec: nn.Module | NetworkSpec, seeds: int | None, redraw: Redraw | None, where: str) -> int:
    """How many networks are measured: one of a module as it is, 20 of what can be drawn, or as many as asked for."""
    fixed = not isinstance(model_or_spec, NetworkSpec) and redraw is None
    count = (1 if fixed else 20) if seeds is None else seeds
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise input_error(where, "`seeds` of at least 1", repr(seeds), "Pass a number of networks")
    if fixed and count > 1:
        raise input_error(
            where, "`redraw` for more than one seed of a module", "None", "Pass redraw=callable(model, seed)"
        )
    return count


def networks(
    model_or_spec: nn.Module | NetworkSpec,
    count: int,
    seed: int,
    redraw: Redraw | None,
    dtype: torch.dtype,
    where: str,
) -> Iterator[tuple[int, nn.Module]]:
    """The networks one after the other, each with its seed. A module that is drawn anew is copied first."""
    for number in range(seed, seed + count):
        if isinstance(model_or_spec, NetworkSpec):
            yield number, model_or_spec.build(number, dtype).train(model_or_spec.needs_training_mode)
            continue
        if not isinstance(model_or_spec, nn.Module):
            raise input_error(
                where, "an nn.Module or a NetworkSpec", type(model_or_spec).__name__, "Pass the model itself"
            )
        model = unwrap(model_or_spec)
        refuse_sharded(model, where)
        if redraw is not None:
            model = copy.deepcopy(model)
            with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
                torch.manual_seed(number)  # for a `redraw` that leaves the draw to torch
                redraw(model, number)
        yield number, model
