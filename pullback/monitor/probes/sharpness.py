"""Largest and smallest curvature against what the optimiser bears."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback._checks import InputError
from pullback._memory import give_back
from pullback.diagnostics import stability_limit
from pullback.diagnostics.preconditioned_sharpness import precondition
from pullback.diagnostics.step_sizes import Optimizers, StepGroup, optimizers_of, step_groups
from pullback.functional import ModelView, loss_readout, num_samples, take
from pullback.functional.memory import graph_bytes
from pullback.functional.plain_calls import own_calls
from pullback.functional.unwrap import full_precision
from pullback.functional.walk import parts_of
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work
from pullback.operators import GaussNewton, Hessian
from pullback.operators.operator import Operator
from pullback.spectral.lanczos import outer_values, start_vector

NUM_SAMPLES = (16, 64)  # curvature of fewer samples than the kernel's: its cost is tens of gradients
TOLERANCE = 1e-1  # relative residual, stored beside the value, whose own error is of the order of its square
MAX_MATVECS = {"both": 12, "largest": 8}
HELD_BYTES = 2**25  # up to 64 samples whose graph this holds; beyond it 16, and parts of the loop's batch,
AT_ONCE = 4  # a fourth of it: the graph is several times a training step's a sample
PRODUCT, GRADIENTS, COMPARED = 2.0, 16.0, 80.0  # passes: a product's, a sample's else, and in all for the checks
GRAPHS = 8  # what a Hessian's graph and a product hold, in graphs of a loss


def measure(observed: Observation) -> Measurement:
    """Largest eigenvalue of ``hessian`` and ``gauss_newton``, the Hessian's ``smallest``, all with ``…_residual``.

    They are those of the loss the optimiser descends: where it is a batch's sum, the mean's times its size.

    Of ``num_samples``, which are fewer where their graph is large: few see a larger curvature than the whole data.

    With an optimiser its ``learning_rate`` and the ``limit`` it sets: 2 / lr, for SGD with ``momentum`` as of
    ``stability_limit``; of several groups those of the one that bears least, and all ``learning_rates`` where they
    differ. With Adam, and with groups that bear unequal curvature, ``preconditioned``, the largest eigenvalue as of
    ``preconditioned_sharpness``, and ``preconditioned_limit``. A rate that is no number (``lr=None``) has no limit.
    Without autocast: products in half precision are not symmetric to what eigenvalues need.
    """
    each = observed.memory.pop("sharpness bytes", None)  # what was looked at to plan this measurement
    count, chunk = _num_samples(observed, _graph_bytes(observed) if each is None else each)
    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    batches = [(take(observed.x, part), take(observed.y, part)) for part in parts]
    data = batches[0] if len(batches) == 1 else batches  # the graph of a lone batch is kept between products
    with full_precision(observed.model), own_calls():  # operators make plain calls themselves, where they evaluate
        structure, (checked, *confirmed) = _structure(observed), observed.memory.get("sharpness", (None, False, False))
        if known := structure == checked:
            hessian = Hessian.once_more(observed.model, observed.loss_fn, data, confirmed=confirmed[0])
        else:
            hessian = Hessian(observed.model, observed.loss_fn, data)
        linearised = GaussNewton.beside(hessian, confirmed=known and confirmed[1])
        give_back()  # what the checks took, before the basis of a spectrum comes on top
        with hessian.held():
            H = _descended(hessian, observed)
            start = start_vector(H)
            ends = _extremes(H, "both", start)
            values: dict[str, Any] = {
                "hessian": ends[0][0],
                "hessian_residual": ends[0][1],
                "smallest": ends[-1][0],
                "smallest_residual": ends[-1][1],
                "num_samples": count,
            }
            give_back()  # the basis
            if observed.optimizer is not None:
                values |= _limits(observed, observed.optimizer, H, start)
        confirmed_hessian = hessian.confirmed
        del H, hessian  # and the graph it holds
        give_back()
        with linearised.held():
            A = _descended(linearised, observed)
            ((largest, residual),) = _extremes(A, "largest", start)
        observed.memory["sharpness"] = structure, confirmed_hessian, linearised.confirmed
    return Measurement(values | {"gauss_newton": largest, "gauss_newton_residual": residual})


def _extremes(operator: Operator, which: str, start: Tensor) -> list[tuple[float, float]]:
    """The largest eigenvalue, with "both" also the smallest, each with its residual."""
    found = outer_values(operator, which, tol=TOLERANCE, max_matvecs=MAX_MATVECS[which], start=start)
    return [(float(value), float(residual)) for value, residual in zip(*found, strict=True)]


def _structure(observed: Observation) -> tuple[Any, ...]:
    """What an operator's checks hold for: parameters, modules with their hooks, and the loss; not the weights.

    As of ``KernelSeries``: the first measurement makes every check, and again where any of this has changed.
    """
    view = ModelView.of(observed.model, where="sharpness")
    parameters = [(name, p.shape, p.dtype, p.device) for name, p in view.parameters.items()]
    parts = [(id(m), type(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in parts_of(view.model)]
    return parameters, parts, observed.loss_fn


def _descended(mean: Operator, observed: Observation) -> Operator:
    return mean if observed.scale == 1 else observed.scale * mean


def _num_samples(observed: Observation, each: int) -> tuple[int, int]:
    """Samples in all, and at once, of so many bytes: the memory is to be training's, and the cost a few dozen steps."""
    held = HELD_BYTES // max(1, GRAPHS * each)
    least, most = NUM_SAMPLES
    count = min(num_samples(observed.x), max(least, min(most, held)))
    return count, max(1, held, (observed.batch_size or count) // AT_ONCE)


def _graph_bytes(observed: Observation) -> int:
    """Of the graph of a sample, which is run for it."""
    view, one = ModelView.of(observed.model, where="sharpness"), slice(0, 1)
    return graph_bytes(view, loss_readout(observed.loss_fn), take(observed.x, one), take(observed.y, one), "sharpness")


def _limits(observed: Observation, optimizer: Optimizers, H: Operator, start: Tensor) -> dict[str, Any]:
    """The learning rates and what they bear, by the curvature from a start vector."""
    view = ModelView.of(observed.model, where="sharpness")
    groups = step_groups(optimizer, view.parameters.values())
    limit = stability_limit(optimizer, view.parameters.values())
    names = {type(each).__name__ for each in [group.optimizer for group in groups] or optimizers_of(optimizer)}
    values: dict[str, Any] = {"optimizer": " + ".join(sorted(names))}
    rates = sorted({group.rate for group in groups if not math.isnan(group.rate)}, reverse=True)
    if not rates:
        return values
    values["learning_rate"] = rates[0] if limit is None else groups[0].rate
    values |= {"learning_rates": rates} if len(rates) > 1 else {}
    plain = all(isinstance(group.optimizer, torch.optim.SGD) for group in groups)
    if plain:
        values["momentum"] = groups[0].number("momentum")
        values |= {} if limit is None else {"limit": limit}
    elif rates[0] > 0:
        values["limit"] = 2 / rates[0]
    if limit is None or (plain and _alike(groups, view)):
        return values
    try:
        operator = precondition(H, observed.model, optimizer)
    except InputError:  # Adam before its first step
        return values
    ((largest, residual),) = _extremes(operator, "largest", start)
    return values | {
        "preconditioned": largest,
        "preconditioned_residual": residual,
        "preconditioned_limit": limit,
    }


def _alike(groups: list[StepGroup], view: ModelView) -> bool:
    """Whether the groups bear the same curvature and hold all parameters: the Hessian itself then says all."""
    held = sum(p.numel() for group in groups for p in group.params)
    return len({group.limit for group in groups}) == 1 and held == view.num_params


def work(observed: Observation) -> Work:
    """Gradients with their graphs, two passes a product of curvature, and a few samples that are compared alone."""
    observed.memory["sharpness bytes"] = each = _graph_bytes(observed)
    count, _ = _num_samples(observed, each)
    products = MAX_MATVECS["both"] + MAX_MATVECS["largest"]
    if observed.optimizer is not None and not all(
        type(each) is torch.optim.SGD for each in optimizers_of(observed.optimizer)
    ):
        products += MAX_MATVECS["largest"]  # of the preconditioned curvature
    return Work(PRODUCT * products + GRADIENTS, fixed=COMPARED, most=count)


PROBE = Probe("sharpness", measure, sparse=True, work=work)
