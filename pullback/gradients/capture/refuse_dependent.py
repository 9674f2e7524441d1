"""Samples of a batch against the same samples alone: a gradient that depends on the batch is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback.functional import ModelView
from pullback.functional.agreement import disagreement, norms, tolerance
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.sum_checks import SHARED, undefined
from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import Factor


def check_sample(
    factors: Iterable[Factor],
    alone: Callable[..., Tensors],
    view: ModelView,
    outputs: Tensor,
    index: int,
    dtype: torch.dtype,
    where: str,
) -> None:
    """Rows of one sample against its gradient in a batch of one, parameter by parameter.

    Args:
        factors: rows of all parameters.
        alone: the gradient of ``sum_c outputs_c f_c`` of the sample alone, parameter -> shape; of the model, or at the
            parameters given.
        view: the parameters.
        outputs: the combination, (C,).
        index: the sample.
        dtype: what the rows were captured in.
        where: the caller.
    """
    own = alone()
    with without_autocast():
        errors = {n: each for factor in factors for n, each in _errors(factor, own, outputs, index).items()}
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
    if (found := disagreement(errors, own, alone, view.parameters, dtype, SHARED)) is not None:
        name, error, size = found
        raise unsupported(
            where,
            "samples whose gradients do not depend on the rest of the batch",
            f"for sample {index} and parameter `{name}` a difference of {error:.2e} "
            f"from that sample alone (its norm: {size:.2e})",
            "Call model.eval(), pass batch_first=True to layers that would take (T, N, ...), remove operations that "
            "mix or shuffle samples or draw random numbers, and see that the loss treats samples one by one",
        )


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


def _errors(factor: Factor, own: Tensors, outputs: Tensor, index: int) -> Tensors:
    """Per parameter the norm of the difference between a sample's combined row and its gradient."""
    errors = {}
    for name, row in factor.rows(slice(index, index + 1)).items():
        combined = torch.einsum("c...,c->...", row[0], outputs.to(row))
        errors[name] = norms([combined - own[name].to(row.dtype)])[0]
    return errors
