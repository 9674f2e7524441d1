"""Captures of every rank's own samples, gathered so that all ranks hold those of all samples.

A rank cannot send a factor, only tensors. So the ranks first tell each other how theirs are built, and what they have
in common is put together as any captures are (``gradients/capture/joined``); here is what is exchanged for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pullback._checks import input_error
from pullback.functional.agreement import loosest
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.joined import emptied, in_order, of_parts, rows_each, without_rows
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import Factor
from pullback.kernels.group.team import Team


@dataclass(frozen=True)
class Gathered:
    """One side of a kernel on one rank.

    Args:
        whole: factors of all samples, the same on every rank; ``ordinary`` and ``probes`` are those of all samples.
        own: factors of this rank's samples, in the same order; plain rows, if it has no samples.
    """

    whole: Captured
    own: Captured


def gather(team: Team, captured: Captured, share: slice) -> Gathered:
    """Exchange captures.

    Args:
        team: the ranks.
        captured: of the samples in ``share``; of any others, if that is empty: nothing of them is sent.
        share: this rank's samples.

    Raises:
        InputError: the number of outputs C is not the same on all ranks.
    """
    with team.phase():
        description = json.dumps(_described(captured))
    told = [json.loads(text) for text in team.texts(description)]
    with team.phase():
        if len(widths := {tuple(each["values"]) for each in told}) > 1:
            got = f"{' and '.join(str(width) for width, _ in sorted(widths))} on different ranks"
            remedy = "Pad the data so that the number of outputs does not depend on the batch"
            raise input_error(team.where, "the same number of outputs C for all samples", got, remedy)
        own = in_order(captured, _signatures(captured), [each["factors"] for each in told])
        shared = _first_places(own.factors)
        if share.stop == share.start:
            own = emptied(own)
        sent = json.dumps([own.num_samples, _sizes(own.factors), shared])
    sizes = [json.loads(text) for text in team.texts(sent)]
    factors = _whole_factors(team, own.factors, [each[1] for each in sizes], [each[2] for each in sizes])
    values = team.gathered(own.values, [each[0] for each in sizes])
    outputs = _whole_outputs(team, own.outputs, [each[0] for each in sizes], [each["outputs"] for each in told])
    ordinary = _summed(team, own, own.ordinary, [each["ordinary"] for each in told])
    probes = _summed(team, own, own.probes, [each["probes"] for each in told])
    dtype = loosest([getattr(torch, each["dtype"]) for each in told])
    whole = replace(own, factors=factors, values=values, outputs=outputs, ordinary=ordinary, probes=probes, dtype=dtype)
    return Gathered(whole, own if own.num_samples else without_rows(own))


def _described(captured: Captured) -> dict[str, Any]:
    n = captured.num_samples
    leaves = [leaf for leaf in tree_flatten(captured.outputs)[0] if isinstance(leaf, Tensor)]
    return {
        "factors": _signatures(captured),
        "values": [captured.num_outputs, str(captured.values.dtype)],
        "outputs": [[str(t.dtype), list(t.shape[1:]), rows_each(t, n)] for t in leaves],
        "ordinary": {name: [list(g.shape), _plain(g.dtype)] for name, g in captured.ordinary.items()},
        "probes": {name: [list(g.shape), _plain(g.dtype)] for name, g in captured.probes.items()},
        "dtype": _plain(captured.dtype),
    }


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _signatures(captured: Captured) -> list[str]:
    """Of every factor all but the samples, which must be equal for its tensors to fit another rank's."""
    return [json.dumps(_signature(f, rule)) for f, rule in zip(captured.factors, captured.rules, strict=True)]


def _signature(factor: Factor, rule: str) -> list[Any]:
    """Kind, shapes, settings, and shapes and dtypes of the tensors."""
    shapes = {name: list(shape) for name, shape in factor.shapes.items()}
    tensors = {name: [str(t.dtype), list(t.shape[1:]) if t.dim() else None] for name, t in factor.tensors().items()}
    return [rule, type(factor).__name__, shapes, factor.constants(), tensors]


def _all_tensors(factors: Sequence[Factor]) -> list[Tensor]:
    return [t for factor in factors for t in factor.tensors().values()]


def _sizes(factors: Sequence[Factor]) -> list[int]:
    """First axes of all tensors; of those without axes (a count of samples) the value."""
    return [len(t) if t.dim() else int(t) for t in _all_tensors(factors)]


def _first_places(factors: Sequence[Factor]) -> list[int]:
    """For every tensor the place of the first that is the same memory: inputs of several layers are sent once."""
    seen: dict[Any, int] = {}
    keys = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in _all_tensors(factors)]
    return [seen.setdefault(key, place) for place, key in enumerate(keys)]


def _whole_factors(
    team: Team, own: Sequence[Factor], sizes: Sequence[Sequence[int]], shared: Sequence[Sequence[int]]
) -> tuple[Factor, ...]:
    """Factors of all samples from every rank's tensors."""
    tensors = _all_tensors(own)
    first = shared[0] if all(each == shared[0] for each in shared) else range(len(tensors))
    lengths = list(zip(*sizes, strict=True))  # per tensor, of each rank
    with team.phase():
        whole = [
            t.new_empty((sum(lengths[k]), *t.shape[1:])) if t.dim() and first[k] == k else t
            for k, t in enumerate(tensors)
        ]
    for k, t in enumerate(tensors):
        if t.dim() and first[k] == k:
            team.gathered(t, lengths[k], whole[k])
    with team.phase():
        factors, start = [], 0
        for factor in own:
            names = list(factor.tensors())
            places = range(start, start + len(names))
            start += len(names)
            joined_of = {name: whole[first[k]] for name, k in zip(names, places, strict=True)}
            counts = {name: lengths[k] for name, k in zip(names, places, strict=True)}
            factors.append(of_parts(factor, joined_of, counts))
    return tuple(factors)


def _whole_outputs(team: Team, own: Any, counts: Sequence[int], told: Sequence[Sequence[Any]]) -> Any:
    """What the model returned for all samples; tensors without an axis of samples stay this rank's own."""
    leaves, spec = tree_flatten(own)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if len({len(each) for each in told}) > 1:
        return own
    for k, place in enumerate(places):
        rows = told[0][k][2]
        if rows is not None and all(each[k] == told[0][k] for each in told):
            leaf = leaves[place][: counts[team.rank] * rows]
            leaves[place] = team.gathered(leaf, [n * rows for n in counts])
    return tree_unflatten(leaves, spec)


def _summed(team: Team, own: Captured, mine: Mapping[str, Tensor], told: Sequence[Mapping[str, Any]]) -> Tensors:
    """Sums over ranks of tensors by name; a rank that lacks one adds nothing to it."""
    like = own.factors[0].like
    known = {name: described for each in told for name, described in each.items()}
    sums = {}
    for name, (shape, dtype) in known.items():
        zero = torch.zeros(shape, dtype=getattr(torch, dtype), device=like.device)
        sums[name] = mine[name].to(zero) if name in mine else zero
    return dict(zip(sums, team.sums(list(sums.values())), strict=True))
