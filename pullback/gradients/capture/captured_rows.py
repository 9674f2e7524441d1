"""From recorded uses to gradient factors: all of the gradient, each parameter in exactly one factor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.agreement import loosest, tolerance
from pullback.functional.batch import Batch, check_rows
from pullback.functional.plain_calls import own_calls
from pullback.functional.readout import Readout
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import (
    UNSEEN,
    Captured,
    check_half,
    check_samples,
    most_dependent,
    smallest_sum,
)
from pullback.gradients.capture.derived import taken_back
from pullback.gradients.capture.fallback import fallback_rows
from pullback.gradients.capture.passes import capture
from pullback.gradients.capture.uses import Capture, Derived, Use
from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.tied import one_of
from pullback.gradients.rows.unused import UnusedFactor
from pullback.gradients.rules.registry import Call

Built = list[tuple[str, Factor]]  # name of the rule, factor


def captured_rows(
    view: ModelView,
    readout: Readout,
    x: Batch,
    y: Batch,
    where: str,
    known: Capture | None = None,
    *,
    check: bool = True,
) -> Captured:
    """What a call on gradient rows begins with: refusals, then ``capture_factors``, and the model is left as it was.

    One that captures batch after batch calls ``capture_factors`` in a block of ``undisturbed`` around all of them.
    """
    refuse_recurrent_dropout(view.model, where)
    with undisturbed(view.model):
        return capture_factors(view, readout, x, y, where, known, check=check)


def capture_factors(
    view: ModelView,
    readout: Readout,
    x: Batch,
    y: Batch,
    where: str,
    known: Capture | None = None,
    *,
    check: bool = True,
) -> Captured:
    """Capture all samples, build the factors, and check the rows of three samples by definition.

    These are the first, the last, and the one between them that looks most as if it depended on others.

    The first sample alone also tells which axis of every recorded tensor the samples are in. A caller that sees the
    same model again and again (the monitor, further batches of one kernel) may pass that capture of an earlier batch
    as ``known``: it then stands in for the shapes, and no sample is run alone. One that compares rows itself says no
    to ``check``.
    """
    run = capture(view, readout, x, y, where, weighted=check and known is None)
    check_rows(where, run.values, num_samples(x))
    with own_calls():
        ruled = set() if known is None else ruled_names(view, run, known)
    if known is not None and not _fits(view, run, ruled):
        known = None
    has_numbers = run.values.device.type != "meta"
    check = check and known is None and has_numbers
    if torch.float16 in run.dtypes and has_numbers:
        check_half((g for each in run.gradients for g in each if g is not None), where)
    first = known or _one_sample(view, readout, x, y, where, run)
    between = 0
    if check:
        between = most_dependent(run, _axes(run, first), loosest([run.values.dtype, *run.dtypes]))
    ruled = ruled if known is not None else ruled_names(view, run, first)
    captured = _captured(view, readout, (x, y), where, run, first, ruled)
    if check:
        check_samples(captured, readout, (x, y), between, where)
    return captured


def _one_sample(view: ModelView, readout: Readout, x: Batch, y: Batch, where: str, run: Capture) -> Capture:
    """Capture of a sample that takes the whole batch's path through the model, if one of a few does.

    Some models leave out masks where nothing is padded, so that a sample of full length takes another path.
    """
    if run.num_samples == 1:
        return run
    first: Capture | None = None
    for index in dict.fromkeys((0, run.num_samples - 1, *range(1, min(run.num_samples, 8)))):
        one = capture(view, readout, take(x, [index]), take(y, [index]), where, like=run)
        if _alike(run, one):
            return one
        first = first or one
    assert first is not None
    return first


def _fits(view: ModelView, run: Capture, ruled: set[str]) -> bool:
    """Whether an earlier capture of one sample, by which so many are ruled, shows the structure of this one now."""
    stale = any(derived.table is None for derived in run.derived)  # its graph holds the weights of then
    return not stale and len(ruled) >= len(view.parameters) - len(run.escaped)


def _captured(
    view: ModelView,
    readout: Readout,
    data: tuple[Batch, Batch],
    where: str,
    run: Capture,
    first: Capture,
    ruled: set[str],
) -> Captured:
    dtype = loosest(
        [run.values.dtype, *run.dtypes, *(g.dtype for each in run.gradients for g in each if g is not None)]
    )
    built: Built = []
    with without_autocast(), own_calls():
        if ruled:
            for place, (use, one) in enumerate(zip(run.uses, first.uses, strict=True)):
                built += _factors_of(view, run, first, place, use, one, ruled)
        factors, rules = each_parameter_once(built, ruled)
    missing = tuple(name for name in view.parameters if not any(name in f.shapes for f in factors))
    used = set[str]().union(*(_behind(run, use) for use in run.uses))
    escaped = run.escaped | used - ruled
    if rest := tuple(name for name in missing if name in escaped):
        factors.append(fallback_rows(view, readout, rest, data, run, dtype, where))
        rules.append(UNSEEN[0])
    if unused := {name: view.parameters[name].shape for name in missing if name not in escaped}:
        factors.append(UnusedFactor(unused, run.values))
        rules.append(UNSEEN[1])
    with own_calls():
        factors = _of_one_dtype(factors)
    floor = partial(smallest_sum, view, readout, data, where, dtype)
    return Captured.of(view, factors, rules, run, first, dtype, floor)


def _of_one_dtype(factors: list[Factor]) -> list[Factor]:
    """Factors in the widest of their dtypes: a model may be float64 in one layer and float32 in another."""
    dtypes = {t.dtype for factor in factors for t in factor.tensors().values() if t.is_floating_point()}
    if len(dtypes) <= 1:
        return factors
    widest = reduce(torch.promote_types, dtypes)
    return [
        factor.with_tensors({k: t.to(widest) if t.is_floating_point() else t for k, t in factor.tensors().items()})
        for factor in factors
    ]


def _behind(run: Capture, use: Use) -> set[str]:
    """Parameters behind a use: those of its sources, or those a derived tensor among them is made of."""
    names = [source.name for source in use.sources.values()]
    return {leaf for n in names for leaf in (run.derived[int(n[1:])].leaves if n.startswith("~") else (n,))}


def ruled_names(view: ModelView, run: Capture, first: Capture) -> set[str]:
    """Parameters all of whose uses a rule can read, sample by sample."""
    if not _alike(run, first):
        return set()  # another path through the model for another batch: no axis is known to be the samples'
    bad = set(run.escaped)
    for use, one, axis in zip(run.uses, first.uses, _axes(run, first), strict=True):
        if use.data is not None and axis is not None:
            axis = sample_axis(use.arguments[use.data].shape, one.arguments[use.data].shape, run.num_samples)
        if axis is None:
            bad |= _behind(run, use)
    for derived, single in zip(run.derived, first.derived, strict=True):
        if not shared_by_all(derived, single, run.num_samples):
            bad |= set(derived.leaves)
    return set(view.parameters) - bad


def _alike(run: Capture, first: Capture) -> bool:
    """The same calls on the same parameters; derived tensors may have an axis that holds the samples."""

    def names(capture: Capture) -> list[Any]:
        return [
            (use.rule.name, use.data, [(k, s.name, s.rows, s.transposed) for k, s in use.sources.items()])
            for use in capture.uses
        ]

    return names(run) == names(first) and [d.leaves for d in run.derived] == [d.leaves for d in first.derived]


def _factors_of(
    view: ModelView, run: Capture, first: Capture, place: int, use: Use, one: Use, ruled: set[str]
) -> Built:
    """Factors of the parameters behind one use."""
    gradients = run.gradients[place]
    if not _behind(run, use) & ruled or all(g is None for g in gradients):
        return []
    sources = {k: s for k, s in (one if use.data is None else use).sources.items() if s.shape.numel()}
    gradient = by_sample(gradients, one.output_shape, run.num_samples)
    run.gradients[place] = []  # together in `gradient`: the parts can go
    if not sources or not gradient.numel():  # no numbers, or no outputs: nothing is added to any row
        return []
    data = None if use.data is None else one.arguments[use.data].shape
    views = (lambda t: t) if data is None else sample_view(data, run.num_samples)
    made = use.rule.build(Call(use.arguments, sources, views, gradient, use.function))
    built: Built = []
    for factor in made if isinstance(made, list) else [made]:
        if any(name.startswith("~") for name in factor.shapes):
            shapes = {name: p.shape for name, p in view.parameters.items()}
            built += taken_back(use.rule.name, factor, first.derived, shapes)
        else:
            built.append((use.rule.name, factor))
    return built


def each_parameter_once(built: Built, ruled: set[str]) -> tuple[list[Factor], list[str]]:
    """Factors of reused parameters are joined, so that the terms between two uses are in the kernel."""
    uses = [name for _, factor in built for name in factor.shapes]
    single_use = {name for name in uses if uses.count(name) == 1} & ruled
    factors: list[Factor] = []
    rules: list[str] = []
    shared: dict[str, Built] = {}
    for rule, factor in built:
        if set(factor.shapes) <= single_use:
            factors.append(factor)
            rules.append(rule)
            continue
        for name in (n for n in factor.shapes if n in ruled):
            shared.setdefault(name, []).append((rule, factor.only(name)))
            if len(shared[name]) == uses.count(name):
                factors.append(one_of([part for _, part in shared[name]]))
                rules.append(" + ".join(dict.fromkeys(rule for rule, _ in shared[name])))
    return factors, rules


def _axes(run: Capture, first: Capture) -> list[int | None]:
    """Of the samples in the output of every recorded call, as far as the same calls were made for one sample alone."""
    pairs = zip(run.uses, first.uses, strict=False)
    return [sample_axis(use.output_shape, one.output_shape, run.num_samples) for use, one in pairs]


def sample_axis(many: torch.Size, one: torch.Size, count: int) -> int | None:
    """The axis that is ``count`` times as long for ``count`` samples as for one; None if it is not that simple."""
    if len(many) != len(one):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(many, one, strict=True)) if a != b]
    if count == 1:
        return 0 if not grown else None
    return grown[0] if len(grown) == 1 and many[grown[0]] == count * one[grown[0]] else None


def sample_view(one: torch.Size, count: int) -> Callable[[Tensor], Tensor]:
    """Takes a tensor with ``count`` samples in some axis to (count, *one)."""

    def view(tensor: Tensor) -> Tensor:
        axis = sample_axis(tensor.shape, one, count)
        if axis is None:
            return tensor
        return tensor.unflatten(axis, (count, one[axis])).movedim(axis, 0)

    return view


def by_sample(gradients: list[Tensor | None], one: torch.Size, count: int) -> Tensor:
    """Gradients of every output as (N, C, *output shape for a batch of one), without a copy where they lie so."""
    known = next(g for g in gradients if g is not None)
    axis, base = sample_axis(known.shape, one, count), known._base
    if len(gradients) > 1 and axis == 0 and base is not None and base.shape[1] == len(gradients):
        return base.unflatten(0, (count, one[0])).movedim(2, 1)
    each = [sample_view(one, count)(torch.zeros_like(known) if g is None else g) for g in gradients]
    return each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, 1)


def shared_by_all(many: Derived, one: Derived, count: int) -> bool:
    """Whether a tensor taken to be computed from parameters alone is the same for all samples.

    Code that shows in no call (compiled by TorchScript) may have computed it from samples as well.
    """
    value, expected = (d.value.detach() if d.table is None else d.table[1] for d in (many, one))
    if value is expected or value.device.type == "meta":
        return True
    if value.shape != expected.shape:
        if sample_axis(value.shape, expected.shape, count) is None:
            return False
        value = sample_view(expected.shape, count)(value)
        value = value[:1] if value.stride(0) == 0 else value
    if not value.is_floating_point():
        return bool((value == expected).all())
    close, finite = tolerance(value.dtype), expected.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    allowed = close * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(value, expected.expand(value.shape), rtol=close, atol=allowed, equal_nan=True)
