"""The networks a measurement runs through: one as it is, or several that are drawn, and the profiles they give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pullback._checks import check_count, input_error
from pullback.functional.model_view import check_module
from pullback.functional.unwrap import refuse_sharded, unwrap
from pullback.measure.networks.profile import Profile
from pullback.measure.networks.spec import NetworkSpec

# added to the seed of a network for its inputs, masks and read-out, which must not repeat its weights; CPU generators
# keep 32 bits of a seed, so that anything from 2**32 on would
DATA = 2**31
DRAWN = 20  # networks, unless the caller says how many
Redraw = Callable[[nn.Module, int], object]
# of a network and its seed: names of the layers, values of K quantities (K, L), their standard errors over units
MeasureOne = Callable[[nn.Module, int], tuple[tuple[str, ...], Tensor, Tensor]]


def over_networks(
    measure_one: MeasureOne,
    model_or_spec: nn.Module | NetworkSpec,
    seeds: int | None,
    seed: int,
    redraw: Redraw | None,
    dtype: torch.dtype,
    where: str,
) -> tuple[list[Profile], tuple[str, ...], int]:
    """Profiles of the quantities, names of the layers, and how many networks there were.

    Standard errors are over the networks, or over the units of the only one.
    """
    fixed = not isinstance(model_or_spec, NetworkSpec) and redraw is None
    count = (1 if fixed else DRAWN) if seeds is None else seeds
    check_count(where, "seeds", count, 1)
    if fixed and count > 1:
        expected = "`redraw` for more than one seed of a module"
        raise input_error(where, expected, "None", "Pass redraw=callable(model, seed)")
    drawn = networks(model_or_spec, count, seed, redraw, dtype, where)
    layers, values, errors = zip(*(measure_one(model, number) for number, model in drawn), strict=True)
    if len(set(layers)) > 1:
        raise input_error(where, "the same layers in every network", "others for another seed", "Check `redraw`")
    if count == 1:
        profiles = [Profile(value, error) for value, error in zip(values[0], errors[0], strict=True)]
    else:
        profiles = [Profile.over_seeds(samples) for samples in torch.stack(values, 1)]
    return profiles, layers[0], count


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
        check_network(model_or_spec, where)
        check_module(model_or_spec, where)
        model = unwrap(model_or_spec)
        refuse_sharded(model, where)
        if redraw is not None:
            model = copy.deepcopy(model)
            with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
                torch.manual_seed(number)  # for a `redraw` that leaves the draw to torch
                redraw(model, number)
        yield number, model


def check_network(model_or_spec: object, where: str) -> None:
    """Refuse what is neither a module nor a specification."""
    if not isinstance(model_or_spec, nn.Module | NetworkSpec):
        got = type(model_or_spec).__name__
        raise input_error(where, "an nn.Module or a NetworkSpec", got, "Pass the model itself")
