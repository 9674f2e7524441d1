"""``check_gradients``: every rule in use against autograd, sample by sample, as a report instead of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._checks import check_positive
from pullback._results import Shown
from pullback.functional import LossFunction, ModelView, check_batch, loss_readout, undisturbed
from pullback.functional.agreement import leaves_of, norms, rounding, smallest, tolerance
from pullback.functional.batch import Batch
from pullback.functional.refused import refuse_recurrent_dropout
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import SHARED, Captured, gradient_alone
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.rows.contract import Tensors


@dataclass(frozen=True)
class ParameterCheck(Shown):
    """How far one parameter's gradient rows are from autograd's.

    Args:
        parameter: its name.
        rule: which rule wrote its rows down.
        error: the largest |row - gradient| / (|gradient| + |whole gradient| / 10) of a sample; the second term is
            for parameters whose gradient is zero up to rounding. NaN if a number is not finite.
        tolerance: for the dtype of the forward pass, the root of its rounding error; more where rounding the
            parameters moves the gradient of a compared sample further (a unit at its kink).
    """

    parameter: str
    rule: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class GradientCheck(Shown):
    """What ``check_gradients`` found; ``str(check)`` is a table and a verdict.

    Args:
        parameters: one row each, in the model's order.
        samples: indices of the samples that were compared.
        num_samples: N, samples in the batch.
    """

    parameters: tuple[ParameterCheck, ...]
    samples: tuple[int, ...]
    num_samples: int

    @property
    def ok(self) -> bool:
        """Whether all parameters agree."""
        return all(row.ok for row in self.parameters)

    def __str__(self) -> str:
        rows = [("parameter", "rule", "error", "tolerance", "")]
        rows += [
            (r.parameter, r.rule, f"{r.error:.1e}", f"{r.tolerance:.1e}", "ok" if r.ok else "differs")
            for r in self.parameters
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        compared = f"{len(self.samples)} of {self.num_samples} samples"
        wrong = [row.parameter for row in self.parameters if not row.ok]
        if wrong:
            lines.append(f"{len(wrong)} of {len(self.parameters)} parameters differ on {compared}: {', '.join(wrong)}")
        else:
            lines.append(f"all {len(self.parameters)} parameters agree with autograd on {compared}")
        return "\n".join(lines)


def check_gradients(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    samples: int = 4,
    params: Iterable[str] | None = None,
) -> GradientCheck:
    """Gradient rows of a few samples, as every kernel uses them, against autograd in batches of one.

    Kernel calls make this comparison for three samples and raise; here a disagreement is reported, parameter by
    parameter, with the rule that wrote the rows down. Many that differ mean samples that depend on each other or on
    chance (see the errors of ``backward_kernel``); a single one means its rule.

    Args:
        model: any module in eval mode.
        loss_fn: as for ``backward_kernel``.
        x: inputs, (N, ...).
        y: targets, (N, ...).
        samples: how many of the N samples are compared: the first, the last and others evenly between.
        params: names of parameters or modules; None for all trainable ones.

    Returns:
        GradientCheck with ``ok``, and a row for every parameter; print it.

    Raises:
        InputError: data as for ``backward_kernel``, ``samples`` below 1, a registered rule whose rows have wrong
            names or shapes.
        UnsupportedError: batch norm or dropout in train mode.

    Cost: a forward and a backward pass over the batch, and one over each compared sample alone.

    Example:
        >>> import pullback as pb
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        >>> x, y = torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % 2
        >>> check = pb.check_gradients(model, nn.CrossEntropyLoss(), x, y)
        >>> check.ok, check.samples, check.parameters[0].rule
        (True, (0, 3, 5, 8), 'linear')
        >>> G = pb.GradientMatrix(model, nn.CrossEntropyLoss(), x, y).to_dense()
        >>> bool(torch.allclose(G, pb.reference.gradient_matrix(model, nn.CrossEntropyLoss(), x, y)))
        True
    """
    where = "check_gradients"
    check_positive(where, "samples", samples)
    N = check_batch(where, x, y)
    chosen = tuple(
        dict.fromkeys(
            torch.linspace(0, N - 1, min(samples, N), dtype=torch.float64, device="cpu").round().int().tolist()
        )
    )
    view = ModelView.of(model, params, where)
    refuse_recurrent_dropout(view.model, where)
    readout = loss_readout(loss_fn)
    with undisturbed(view.model):
        captured = capture_factors(view, readout, x, y, where, check=False)
        compared = [_compared(captured, i, gradient_alone(view, readout, (x, y), i, where)) for i in chosen]
    errors, limits = (torch.stack(each).amax(0).tolist() for each in zip(*compared, strict=True))
    ruled = zip(captured.factors, captured.rules, strict=True)
    rules = {name: rule for factor, rule in ruled for name in factor.shapes}
    rows = [
        ParameterCheck(name, rules[name], error, limit)
        for name, error, limit in zip(view.parameters, errors, limits, strict=True)
    ]
    return GradientCheck(tuple(rows), chosen, N)


def _compared(captured: Captured, index: int, alone: Callable[..., Tensors]) -> tuple[Tensor, Tensor]:
    """Relative error of every parameter's row of one sample, in the order of the parameters, and its tolerance."""
    own = alone()
    with without_autocast():
        rows = {n: row[0, 0] for factor in captured.factors for n, row in factor.rows(slice(index, index + 1)).items()}
        errors = norms(rows[name] - g.to(rows[name]) for name, g in own.items())
        sizes = norms(own.values())
        scale = sizes + SHARED * sizes.norm()
        errors = torch.where(errors == 0, errors, errors / scale)  # NaN stays NaN
        limits = torch.full_like(errors, tolerance(captured.dtype))
    if (errors > limits).any():
        enough = dict(zip(own, (errors - limits) * scale / 2, strict=True))
        every = dict(captured.view.model.named_parameters())
        limits = limits.clamp(min=smallest(alone(leaves_of(every)).values(), captured.dtype) / scale)
        moved = rounding(own, alone, every, captured.dtype, enough)
        limits = limits + torch.where(moved == 0, moved, 2 * moved / scale)
    return errors, limits
