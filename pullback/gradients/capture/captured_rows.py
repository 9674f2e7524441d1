"""From recorded uses to gradient factors: all of the gradient, each parameter in exactly one factor."""

from __future__ import annotations

from functools import partial, reduce
from typing import Any

import torch

from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.agreement import loosest
from pullback.functional.batch import Batch, check_rows
from pullback.functional.plain_calls import own_calls
from pullback.functional.readout import Readout
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import UNSEEN, Captured, check_half, check_sample, gradient_alone, smallest_sum
from pullback.gradients.capture.derived import pulled_back
from pullback.gradients.capture.fallback import fallback_rows
from pullback.gradients.capture.passes import Capture, capture
from pullback.gradients.capture.sample_axis import by_sample, most_dependent, sample_axis, sample_view, shared_by_all
from pullback.gradients.capture.uses import Use
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
        loose = loosest([run.values.dtype, *run.dtypes])
        between = most_dependent(run.weighted, run.uses, run.gradients, first.uses, run.values, loose)
    ruled = ruled if known is not None else ruled_names(view, run, first)
    captured = _captured(view, readout, (x, y), where, run, first, ruled)
    if check:
        for index in dict.fromkeys((0, between, run.num_samples - 1)):
            check_sample(captured, index, gradient_alone(view, readout, (x, y), index, where), where)
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
    escaped = run.escaped | _used(run) - ruled
    if rest := tuple(name for name in missing if name in escaped):
        factors.append(fallback_rows(view, readout, rest, data, run, dtype, where))
        rules.append(UNSEEN[0])
    if unused := {name: view.parameters[name].shape for name in missing if name not in escaped}:
        factors.append(UnusedFactor(unused, run.values))
        rules.append(UNSEEN[1])
    with own_calls():
        factors = _of_one_dtype(factors)
    return Captured(
        view,
        tuple(factors),
        tuple(rules),
        run.ordinary,
        run.probes,
        run.values,
        run.outputs,
        first,
        dtype,
        (partial(smallest_sum, view, readout, data, where, dtype),),
    )


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


def _leaves(run: Capture, name: str) -> tuple[str, ...]:
    """Parameters behind a source: itself, or those a derived tensor is made of."""
    return run.derived[int(name[1:])].leaves if name.startswith("~") else (name,)


def _used(run: Capture) -> set[str]:
    """Parameters with a recorded use."""
    return {leaf for use in run.uses for source in use.sources.values() for leaf in _leaves(run, source.name)}


def ruled_names(view: ModelView, run: Capture, first: Capture) -> set[str]:
    """Parameters all of whose uses a rule can read, sample by sample."""
    if not _alike(run, first):
        return set()  # another path through the model for another batch: no axis is known to be the samples'
    bad = set(run.escaped)
    for use, one in zip(run.uses, first.uses, strict=True):
        shapes = [(use.output_shape, one.output_shape)]
        if use.data is not None:
            shapes.append((use.arguments[use.data].shape, one.arguments[use.data].shape))
        if any(sample_axis(many, single, run.num_samples) is None for many, single in shapes):
            bad |= {leaf for source in use.sources.values() for leaf in _leaves(run, source.name)}
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
    wanted = {leaf for source in use.sources.values() for leaf in _leaves(run, source.name)} & ruled
    if not wanted or all(g is None for g in gradients):
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
        behind = [name for name in factor.shapes if name.startswith("~")]
        if not behind:
            built.append((use.rule.name, factor))
            continue
        shapes = {name: p.shape for name, p in view.parameters.items()}
        for name in factor.shapes:
            part = factor.only(name)
            if name in behind:
                derived = first.derived[int(name[1:])]
                built += [(f"derived {use.rule.name}", f) for f in pulled_back(part, name, derived, shapes)]
            else:
                built.append((use.rule.name, part))
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
