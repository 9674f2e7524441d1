"""Gradient norms: of the mean gradient, and of single samples'."""

from __future__ import annotations

import math

import torch

from pullback._checks import PullbackError, unsupported
from pullback.functional import ModelView, loss_readout
from pullback.functional.agreement import norms
from pullback.functional.differentiable import differentiable
from pullback.functional.plain_calls import own_calls
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import checked_sums
from pullback.kernels.kernel_series import WHERE
from pullback.monitor.probes.base import Measurement, Observation, Probe, without_frames


def measure(observed: Observation) -> Measurement:
    """``mean_gradient_norm`` = |mean_i g_i| = sqrt(1^T K 1) / N; ``rms_gradient_norm`` = sqrt(mean_i |g_i|^2).

    Of the kernel where other probes ask for it, else of the rows. Where there are neither (squares of activations
    beyond the dtype, say) the first alone, of a pass of its own.
    """
    try:
        if not observed.pairs:
            return Measurement(_of_rows(observed.rows))
        total = observed.kernel.total
    except PullbackError as error:
        refused = None if observed.pairs else without_frames(error)  # the probes that ask for the kernel say it
        return Measurement({"mean_gradient_norm": _mean_gradient_norm(observed)}, missing=refused)
    n = len(total)
    return Measurement(
        {
            "mean_gradient_norm": float(total.sum(1).double().sum().clamp(min=0).sqrt()) / n,
            "rms_gradient_norm": float((total.diagonal().sum() / n).clamp(min=0).sqrt()),
        }
    )


@without_autocast()
def _of_rows(rows: Captured) -> dict[str, float]:
    with own_calls():
        sums, squares = checked_sums(rows, WHERE)
    values = {"mean_gradient_norm": float(norms(list(sums.values())).norm()) / rows.num_samples}
    if math.isfinite(squares):
        values["rms_gradient_norm"] = math.sqrt(squares / rows.num_samples)
    return values


def _mean_gradient_norm(observed: Observation) -> float:
    view = ModelView.of(observed.model, where="gradients")
    with differentiable(), torch.enable_grad():
        loss = loss_readout(observed.loss_fn)(view(observed.x), observed.y, "gradients").mean()
        slopes = torch.autograd.grad(loss, list(view.parameters.values()), allow_unused=True)
    sizes = {name: norms([s])[0] for name, s in zip(view.parameters, slopes, strict=True) if s is not None}
    if not_finite := [name for name, size in sizes.items() if not torch.isfinite(size)]:
        raise unsupported(
            "gradients",
            "a finite gradient of the mean loss",
            f"NaN or infinity in {', '.join(f'`{name}`' for name in not_finite)}, although the losses are finite",
            "Lower the learning rate or scale the starting weights down, and look for roots and divisions at 0",
        )
    return float(torch.stack(list(sizes.values())).norm())


PROBE = Probe("gradients", measure)
