"""``Captured``: the gradient factors of a set of samples, which all that follows is made of.

Its rows are compared with gradients of samples alone: one that depends on the rest of its batch is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback.functional import ModelView, take, undisturbed
from pullback.functional.agreement import disagreement, leaves_of, norms, sample_weights, smallest, tolerance
from pullback.functional.batch import Batch
from pullback.functional.model_view import layer_of
from pullback.functional.readout import Readout, combination
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.passes import Capture, differentiable
from pullback.gradients.rows.contract import Tensors
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
    ordinary: dict[str, Tensor]
    probes: dict[str, Tensor]
    values: Tensor
    outputs: Any
    first: Capture
    dtype: torch.dtype
    floors: tuple[Callable[[], float], ...] = ()

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

    def forward_order(self) -> list[str]:
        """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
        named = [(layer_of(n), r in UNSEEN) for f, r in zip(self.factors, self.rules, strict=True) for n in f.shapes]
        order = list(dict.fromkeys(layer for layer, unseen in named if not unseen))
        defined = list(self.view.layers)
        for place, layer in enumerate(defined):
            if layer not in order:
                order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
        return order


def gradient_alone(
    view: ModelView, readout: Readout, data: tuple[Batch, Batch], index: int, where: str
) -> Callable[..., Tensors]:
    """Makes the gradient of one sample in a batch of one, by autograd alone: nothing is recorded or replaced.

    It is that of ``sum_c u_c f_c``, parameter -> shape; of the model, or at and in the parameters given, by name.
    """
    x, y = (take(each, [index]) for each in data)

    def alone(parameters: Tensors | None = None) -> Tensors:
        point: Mapping[str, Tensor] = parameters or view.parameters
        with torch.enable_grad(), differentiable(where):
            values = readout(view(x, parameters), y, where)
            combined = (values * combination(values.shape[1], values)).sum()
            gradients = torch.autograd.grad(combined, list(point.values()), allow_unused=True)
        pairs = zip(point.items(), gradients, strict=True)
        return {name: torch.zeros_like(p) if g is None else g.to_dense() for (name, p), g in pairs}

    return alone


def smallest_sum(view: ModelView, readout: Readout, data: tuple[Batch, Batch], where: str, dtype: torch.dtype) -> float:
    """``smallest`` of a batch's sum of gradients, by one in which samples do not cancel each other."""
    x, y = data
    with undisturbed(view.model), torch.enable_grad(), differentiable(where):
        parameters = leaves_of(dict(view.model.named_parameters()))
        values = readout(view(x, parameters), y, where)
        weights = sample_weights(len(values), values).unsqueeze(1) * combination(values.shape[1], values)
        gradients = torch.autograd.grad((values * weights).sum(), list(parameters.values()), allow_unused=True)
    return smallest((g.to_dense() for g in gradients if g is not None), dtype)


def check_sample(captured: Captured, index: int, alone: Callable[..., Tensors], where: str) -> None:
    """Rows of one sample against its gradient in a batch of one, ``gradient_alone``, parameter by parameter."""
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
