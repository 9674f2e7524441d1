"""``Captured``: the gradient factors of a set of samples, which all that follows is made of, and what proves them.

Rows are compared with gradients of samples alone: one that depends on the rest of its batch is refused. A further pass
shows where to look. Row i of a recorded call's gradient is what arrives at sample i's place from all losses together:
sum_j d f_j / d use_i. It is sample i's own gradient if the terms with j != i are zero, which one backward pass from
sum_j w_j f_j shows for all samples at once: with weights that are all different, row i is then w_i times what it was.
The pass leads to the first recorded calls alone, behind which all that mixes samples must lie. The sample it points at
is compared with itself alone, which decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback._rng import make_generator
from pullback.functional import ModelView, take, undisturbed
from pullback.functional.agreement import disagreement, leaves_of, norms, row_norms, sample_weights, smallest, tolerance
from pullback.functional.batch import Batch
from pullback.functional.model_view import layer_of
from pullback.functional.readout import Readout, combination
from pullback.functional.saved_tensors import autograd_in_words
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.uses import Capture, Projections, Use
from pullback.gradients.rows.contract import Tensors, full_precision
from pullback.gradients.rows.factor import Factor

UNSEEN = ("vmap fallback", "unused")  # names of the rules whose parameters no recorded call holds
SHARED = 0.1  # of the size of a whole gradient: what a parameter whose own is zero but for rounding is measured by


@dataclass(frozen=True)
class Captured:
    """Gradient factors of all parameters, each parameter in exactly one, and how they came about.

    Args:
        view: the parameters.
        factors: in the order of first use in the forward pass; unused and fallback parameters come last.
        rules: name of the rule of each factor.
        order: layers in the order of first use.
        ordinary: gradient of the combination ``sum_ic u_c f_ic``, parameter -> shape, where it is not zero.
        probes: what is missing there, see ``Capture``.
        values: the readout, (N, C).
        outputs: what the model returned.
        first: capture of one sample alone.
        dtype: what the forward pass computed in, at its loosest; tolerances follow from it.
        floors: of every batch it is made of what makes ``smallest_sum``.
    """

    view: ModelView
    factors: tuple[Factor, ...]
    rules: tuple[str, ...]
    order: tuple[str, ...]
    ordinary: dict[str, Tensor]
    probes: dict[str, Tensor]
    values: Tensor
    outputs: Any
    first: Capture
    dtype: torch.dtype
    floors: tuple[Callable[[], float], ...] = ()

    @classmethod
    def of(
        cls,
        view: ModelView,
        factors: Sequence[Factor],
        rules: Sequence[str],
        run: Capture,
        first: Capture,
        dtype: torch.dtype,
        floor: Callable[[], float],
    ) -> Captured:
        """Of one batch, ``run``."""
        return cls(
            view=view,
            factors=tuple(factors),
            rules=tuple(rules),
            order=_forward_order(view, factors, rules),
            ordinary=run.ordinary,
            probes=run.probes,
            values=run.values,
            outputs=run.outputs,
            first=first,
            dtype=dtype,
            floors=(floor,),
        )

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.values)

    @property
    def num_outputs(self) -> int:
        """C."""
        return self.values.shape[1]

    @property
    def combination(self) -> Tensor:
        """Weights u of the outputs in ``ordinary``, (C,)."""
        return combination(self.num_outputs, self.values)


def _forward_order(view: ModelView, factors: Sequence[Factor], rules: Sequence[str]) -> tuple[str, ...]:
    """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
    named = [(layer_of(n), r in UNSEEN) for f, r in zip(factors, rules, strict=True) for n in f.shapes]
    order = list(dict.fromkeys(layer for layer, unseen in named if not unseen))
    defined = list(view.layers)
    for place, layer in enumerate(defined):
        if layer not in order:
            order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
    return tuple(order)


def weighted_pass(uses: list[Use], values: Tensor) -> Projections:
    """Gradients of ``sum_ic w_i u_c f_ic`` in the first recorded calls, in short; the graph is kept.

    Which axis holds the samples is not known yet: there are numbers for each that may.
    """
    count = len(values)
    front = {place: use for place, use in enumerate(uses) if use.front}
    if count == 1 or not front:
        return {}
    total = (sample_weights(count, values).unsqueeze(1) * values * combination(values.shape[1], values)).sum()
    edges: Any = [use.edge for use in front.values()]
    gradients = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
    return {
        place: {axis: _along(axis, [g]) for axis, size in enumerate(g.shape) if size % count == 0}
        for place, g in zip(front, gradients, strict=True)
        if g is not None
    }


def most_dependent(run: Capture, axes: list[int | None], dtype: torch.dtype) -> int:
    """The sample between first and last whose weighted gradient is least its own; the middle one if all are.

    Args:
        run: of all samples, with the weighted pass.
        axes: of the samples in the output of each recorded call, as one sample alone shows them.
        dtype: what the passes computed in, at its loosest.
    """
    values, count, shares = run.values, run.num_samples, []
    if not run.weighted or count < 3:
        return count // 2
    signs = combination(values.shape[1], values).tolist()
    weights = sample_weights(count, values).double().unsqueeze(1)
    for place, projected in run.weighted.items():
        known = [sign * g for sign, g in zip(signs, run.gradients[place], strict=True) if g is not None]
        axis = axes[place] if place < len(axes) else None
        if not known or axis is None or axis not in projected:
            continue
        plain, weighted = (t.unflatten(0, (count, -1)) for t in (_along(axis, known), projected[axis]))
        allowed = tolerance(dtype) * row_norms(plain) + torch.finfo(torch.float64).tiny
        shares.append(row_norms(weighted / weights - plain) / allowed)
    if not shares:
        return count // 2
    share = torch.stack(shares).amax(0).nan_to_num(nan=torch.inf)[1:-1]
    return 1 + int(share.argmax()) if float(share.max()) > 1 else count // 2


def _along(axis: int, parts: Iterable[Tensor]) -> Tensor:
    """The sum of some tensors with fixed signs over all axes but one, in float64."""
    total: Tensor | float = 0.0
    for part in parts:
        flat = full_precision(part.movedim(axis, 0).flatten(1) if part.dim() > 1 else part.unsqueeze(1))
        signs = torch.randint(2, (flat.shape[1],), generator=make_generator(flat.shape[1]), device="cpu") * 2 - 1
        total = total + (flat @ signs.to(flat)).double()
    assert isinstance(total, Tensor)
    return total


def gradient_alone(
    view: ModelView, readout: Readout, data: tuple[Batch, Batch], index: int, where: str
) -> Callable[..., Tensors]:
    """Makes the gradient of one sample in a batch of one, by autograd alone: nothing is recorded or replaced.

    It is that of ``sum_c u_c f_c``, parameter -> shape; of the model, or at and in the parameters given, by name.
    """
    x, y = (take(each, [index]) for each in data)

    def alone(parameters: Tensors | None = None) -> Tensors:
        point: Mapping[str, Tensor] = parameters or view.parameters
        with torch.enable_grad(), autograd_in_words(where):
            values = readout(view(x, parameters), y, where)
            combined = (values * combination(values.shape[1], values)).sum()
            gradients = torch.autograd.grad(combined, list(point.values()), allow_unused=True)
        pairs = zip(point.items(), gradients, strict=True)
        return {name: torch.zeros_like(p) if g is None else g.to_dense() for (name, p), g in pairs}

    return alone


def smallest_sum(view: ModelView, readout: Readout, data: tuple[Batch, Batch], where: str, dtype: torch.dtype) -> float:
    """``smallest`` of a batch's sum of gradients, by one in which samples do not cancel each other."""
    x, y = data
    with undisturbed(view.model), torch.enable_grad(), autograd_in_words(where):
        parameters = leaves_of(dict(view.model.named_parameters()))
        values = readout(view(x, parameters), y, where)
        weights = sample_weights(len(values), values).unsqueeze(1) * combination(values.shape[1], values)
        gradients = torch.autograd.grad((values * weights).sum(), list(parameters.values()), allow_unused=True)
    return smallest((g.to_dense() for g in gradients if g is not None), dtype)


def check_samples(captured: Captured, readout: Readout, data: tuple[Batch, Batch], between: int, where: str) -> None:
    """Rows of the first sample, the last and one between them against their gradients in a batch of one."""
    for index in dict.fromkeys((0, between, captured.num_samples - 1)):
        _check_sample(captured, index, gradient_alone(captured.view, readout, data, index, where), where)


def _check_sample(captured: Captured, index: int, alone: Callable[..., Tensors], where: str) -> None:
    """Parameter by parameter."""
    own, outputs, dtype = alone(), captured.combination, captured.dtype
    with without_autocast():
        errors = {n: each for factor in captured.factors for n, each in _errors(factor, own, outputs, index).items()}
    for name, each in errors.items():
        if torch.isfinite(each):
            continue
        if dtype == torch.float16 or not torch.isfinite(own[name]).all():
            what = f"the gradient of `{name}` for sample {index}"
            raise undefined(what, dtype, where)
        raise self_check_error(
            where,
            f"finite rows of `{name}`",
            f"NaN or infinity for sample {index}, whose gradient alone is finite",
            "Correct the layer's rule, or report this model; meanwhile leave that part out with `params=`",
        )
    every = dict(captured.view.model.named_parameters())  # also those that are not asked for
    if (found := disagreement(errors, own, alone, every, dtype, SHARED)) is not None:
        name, error, size = found
        raise unsupported(
            where,
            "samples whose gradients do not depend on the rest of the batch",
            f"for sample {index} and parameter `{name}` a difference of {error:.2e} "
            f"from that sample alone (its norm: {size:.2e})",
            "Call model.eval(), pass batch_first=True to layers that would take (T, N, ...), remove operations that "
            "mix or shuffle samples or draw random numbers, and see that the loss treats samples one by one",
        )


def _errors(factor: Factor, own: Tensors, outputs: Tensor, index: int) -> Tensors:
    """Per parameter the norm of the difference between a sample's combined row and its gradient."""
    errors = {}
    for name, row in factor.rows(slice(index, index + 1)).items():
        combined = torch.einsum("c...,c->...", row[0], outputs.to(row))
        errors[name] = norms([combined - own[name].to(row.dtype)])[0]
    return errors


def check_half(gradients: Iterable[Tensor], where: str) -> None:
    """Refuse float16 gradients beyond the range of that dtype: infinite, or so small that no digits are left."""
    half = [g for g in gradients if g.dtype == torch.float16]
    largest = max((float(g.abs().max()) for g in half if g.numel()), default=1.0)
    if not largest < float("inf"):
        raise undefined("the gradients of layers' outputs", torch.float16, where)
    spacing = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    if largest * tolerance(torch.float16) < spacing:
        raise unsupported(
            where,
            "gradients that float16 can hold",
            f"none above {largest:.1e}, where float16 knows multiples of {spacing:.1e} only",
            "Multiply the loss by a larger factor (loss scaling), or use bfloat16 or float32",
        )


def undefined(what: str, dtype: torch.dtype, where: str) -> Exception:
    """The error for numbers that are NaN or infinite although the losses are not."""
    if dtype == torch.float16:
        return unsupported(
            where,
            "gradients that float16 can hold",
            f"NaN or infinity in {what}: float16 ends at 65504",
            "Multiply the loss by a smaller factor, or use bfloat16 or float32",
        )
    return unsupported(
        where,
        "finite gradients",
        f"NaN or infinity in {what}, although its loss is finite",
        "Look for derivatives that do not exist where the model is evaluated (a root or a norm at 0, 0 / 0)",
    )
