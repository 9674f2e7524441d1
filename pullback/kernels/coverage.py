"""From recorded uses to gradient factors, and the proof that they are all of the gradient and nothing else.

Every call makes these checks on itself:

1. No parameter has a gradient outside its recorded uses (``Capture.escaped``); those that do go to the fallback.
2. For the first and the last sample, every parameter's row equals the gradient of that sample alone in a batch of
   one, which is the definition. It fails if samples are coupled, if the model is random, or if a rule is wrong.
3. Per parameter, the rows sum to the ordinary gradient of the summed loss.
4. Per layer, ``1^T K 1 = |sum of g_i|^2``, which covers the making of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback.functional import LossFunction, ModelView, take
from pullback.functional.batch import Batch
from pullback.kernels.capture import Capture, Use, capture
from pullback.kernels.factors import DenseFactor, Factor, OuterFactor, UnusedFactor
from pullback.kernels.fallback import fallback_rows
from pullback.kernels.rules.registry import Call

UNSEEN = ("vmap fallback", "unused")  # names of the rules whose parameters no recorded call holds


@dataclass(frozen=True)
class Captured:
    """Gradient factors of all parameters, each parameter in exactly one, and how they came about.

    Args:
        factors: in the order of first use in the forward pass; unused and fallback parameters come last.
        rules: name of the rule of each factor.
        ordinary: gradient of the summed loss, parameter -> shape.
        losses: (N,).
        outputs: what the model returned.
        first: capture of one sample alone.
    """

    view: ModelView
    factors: tuple[Factor, ...]
    rules: tuple[str, ...]
    ordinary: dict[str, Tensor]
    losses: Tensor
    outputs: Any
    first: Capture

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.losses)


def single(view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, index: int, where: str) -> Capture:
    """Capture of one sample as a batch of one, which is the definition of its gradient."""
    return capture(view, loss_fn, take(x, [index]), take(y, [index]), where)


def capture_factors(
    view: ModelView, loss_fn: LossFunction, x: Batch, y: Batch, where: str, known: Capture | None = None
) -> Captured:
    """Capture all samples, build the factors, and check the rows of the first and the last by definition.

    The first sample alone also tells which axis of every recorded tensor the samples are in. A caller that sees the
    same model again and again (the monitor) may pass that capture of an earlier batch as ``known``: it then stands
    in for the shapes, and the two samples are not run anew.
    """
    run = capture(view, loss_fn, x, y, where)
    if known is not None and len(ruled_names(view, run, known)) < len(view.parameters) - len(run.escaped):
        known = None  # a batch of other shapes
    first = known or (run if run.num_samples == 1 else single(view, loss_fn, x, y, 0, where))
    ruled = ruled_names(view, run, first)
    pairs = zip(run.uses, first.uses, strict=False)
    built = [
        (use.rule.name, _build(use, one, run.num_samples))
        for use, one in pairs
        if use.output_gradient is not None and set(use.names.values()) & ruled
    ]
    factors, rules = _each_parameter_once(built, ruled)
    missing = tuple(name for name in view.parameters if not any(name in f.shapes for f in factors))
    escaped = run.escaped | first.escaped | {n for use in run.uses for n in use.names.values()} - ruled
    if rest := tuple(name for name in missing if name in escaped):
        factors.append(fallback_rows(view, loss_fn, rest, x, y, where))
        rules.append(UNSEEN[0])
    if unused := {name: view.parameters[name].shape for name in missing if name not in escaped}:
        factors.append(UnusedFactor(unused, run.num_samples, run.losses))
        rules.append(UNSEEN[1])
    captured = Captured(view, tuple(factors), tuple(rules), run.ordinary, run.losses, run.outputs, first)
    if known is not None:
        return captured
    last = run.num_samples - 1
    check_sample(captured, first, 0, where)
    if last > 0:
        check_sample(captured, single(view, loss_fn, x, y, last, where), last, where)
    return captured


def ruled_names(view: ModelView, run: Capture, first: Capture) -> set[str]:
    """Parameters all of whose uses a rule can read, sample by sample."""
    same = [(u.rule.name, u.names) for u in run.uses] == [(u.rule.name, u.names) for u in first.uses]
    if not same:  # another path through the model for another batch: no axis is known to be the samples'
        return set()
    bad = set(run.escaped | first.escaped)
    for use, one in zip(run.uses, first.uses, strict=True):
        data = use.arguments[use.rule.data].shape, one.arguments[one.rule.data].shape
        output = use.output_shape, one.output_shape
        if any(sample_axis(many, single_, run.num_samples) is None for many, single_ in (data, output)):
            bad |= set(use.names.values())
    return set(view.parameters) - bad


def sample_axis(many: torch.Size, one: torch.Size, count: int) -> int | None:
    """The axis that is ``count`` times as long for ``count`` samples as for one; None if it is not that simple."""
    if len(many) != len(one):
        return None
    grown = [axis for axis, (a, b) in enumerate(zip(many, one, strict=True)) if a != b]
    if count == 1:
        return 0 if not grown else None
    return grown[0] if len(grown) == 1 and many[grown[0]] == count * one[grown[0]] else None


def _sample_view(one: torch.Size, count: int) -> Callable[[Tensor], Tensor]:
    """Takes a tensor with ``count`` samples in some axis to (count, *one)."""

    def view(tensor: Tensor) -> Tensor:
        axis = sample_axis(tensor.shape, one, count)
        if axis is None:
            return tensor
        return tensor.unflatten(axis, (count, one[axis])).movedim(axis, 0)

    return view


def _build(use: Use, one: Use, count: int) -> Factor:
    assert use.output_gradient is not None
    gradient = _sample_view(one.output_shape, count)(use.output_gradient)
    samples = _sample_view(one.arguments[one.rule.data].shape, count)
    return use.rule.build(Call(use.arguments, use.names, samples, gradient))


def _each_parameter_once(built: list[tuple[str, Factor]], ruled: set[str]) -> tuple[list[Factor], list[str]]:
    """Factors of reused parameters are joined, so that the terms between two uses are in the kernel."""
    uses = [name for _, factor in built for name in factor.shapes]
    single_use = {name for name in uses if uses.count(name) == 1} & ruled
    factors: list[Factor] = []
    rules: list[str] = []
    shared: dict[str, list[tuple[str, Factor]]] = {}
    for rule, factor in built:
        if set(factor.shapes) <= single_use:
            factors.append(factor)
            rules.append(rule)
            continue
        for name in (n for n in factor.shapes if n in ruled):
            shared.setdefault(name, []).append((rule, factor.only(name)))
            if len(shared[name]) == uses.count(name):
                factors.append(_joined([part for _, part in shared[name]]))
                rules.append(" + ".join(rule for rule, _ in shared[name]))
    return factors, rules


def _joined(factors: list[Factor]) -> Factor:
    """One factor for several uses of a parameter: linear uses are further positions, others are summed rows."""
    if len(factors) == 1:
        return factors[0]
    plain = [f for f in factors if type(f) is OuterFactor]
    if len(plain) == len(factors) and len({(f.dims[1:], f.transposed) for f in plain}) == 1:
        inputs, gradients = (torch.cat([getattr(f, k) for f in plain], 1) for k in ("inputs", "gradients"))
        return OuterFactor(inputs, gradients, plain[0].weight, None, plain[0].weight_shape, plain[0].transposed)
    rows = [factor.rows(slice(0, factor.num_samples)) for factor in factors]
    return DenseFactor({name: torch.stack([row[name] for row in rows]).sum(0) for name in rows[0]})


def tolerance(dtype: torch.dtype) -> float:
    """Relative error above which two ways to one number disagree: the root of the dtype's rounding error."""
    return math.sqrt(torch.finfo(dtype).eps)


def check_sample(captured: Captured, alone: Capture, index: int, where: str) -> None:
    """Rows of one sample against its gradient in a batch of one, parameter by parameter."""
    rows = {n: row[0] for factor in captured.factors for n, row in factor.rows(slice(index, index + 1)).items()}
    own = [alone.ordinary[name] for name in rows]
    errors = _norms([row.to(g.dtype) - g for row, g in zip(rows.values(), own, strict=True)])
    sizes = _norms(own)
    slack = tolerance(captured.losses.dtype if captured.losses.is_floating_point() else torch.float32)
    bounds = max(slack, tolerance(own[0].dtype)) * (sizes + 0.1 * sizes.norm())
    if (place := _first_above(errors, bounds)) is not None:
        raise unsupported(
            where,
            "samples whose gradients do not depend on the rest of the batch",
            f"for sample {index} and parameter `{list(rows)[place]}` a difference of {float(errors[place]):.2e} from "
            f"that sample alone (its norm: {float(sizes[place]):.2e})",
            "Call model.eval(), remove operations that mix or shuffle samples or draw random numbers, "
            "and see that the loss treats samples one by one",
        )


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors]).double()


def _first_above(errors: Tensor, bounds: Tensor) -> int | None:
    """Place of the first error that is not within its bound; NaN is not."""
    bad = ~(errors <= bounds)
    return int(bad.nonzero()[0]) if bad.any() else None


@dataclass
class SumChecks:
    """Checks 3 and 4, gathered over all layers and evaluated in one comparison at the end.

    ``bound`` is the most a sum of rows can be, sqrt(N sum of |g_i|^2): errors are relative to it, because the
    sum itself may cancel to nothing.
    """

    where: str
    names: list[str] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)
    dtype: torch.dtype = torch.float64

    def add_totals(self, factor: Factor, captured: Captured, totals: dict[str, Tensor], bound: Tensor) -> None:
        """Per parameter: summed rows against the ordinary gradient of the summed loss."""
        for name, total in totals.items():
            ordinary = factor.piece_order(name, captured.ordinary[name])
            self._add(f"summed gradient of `{name}`", torch.linalg.vector_norm(total - ordinary), bound, ordinary)

    def add_kernel(self, layer: str, block: Tensor, left: list[Tensor], right: list[Tensor], bound: Tensor) -> None:
        """Per layer: ``1^T K 1`` against the inner product of the two summed gradients (one, if K is symmetric)."""
        inner = torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).double().sum()
        whole = block.sum(1).sum(dtype=torch.float64)
        self._add(f"summed kernel of `{layer}`", (whole - inner).abs(), bound, block)

    def _add(self, name: str, error: Tensor, bound: Tensor, like: Tensor) -> None:
        self.names.append(name)
        self.errors.append(error.double())
        self.bounds.append(bound.double())
        self.dtype = like.dtype if torch.finfo(like.dtype).eps > torch.finfo(self.dtype).eps else self.dtype

    def evaluate(self) -> None:
        """Raise for the first check that fails."""
        errors, bounds = torch.stack(self.errors), torch.stack(self.bounds)
        if (place := _first_above(errors, tolerance(self.dtype) * bounds)) is not None:
            raise self_check_error(
                self.where,
                f"the {self.names[place]} to agree with the ordinary gradient",
                f"a difference of {float(errors[place]):.2e} where at most {float(bounds[place]):.2e} is possible",
                "Please report this model; meanwhile leave that part out with `params=`",
            )
