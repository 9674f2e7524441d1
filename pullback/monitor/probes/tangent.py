"""Does the tangent kernel move? A network in the linear regime keeps it, one that learns features turns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics import kernel_drift, label_alignment, moments
from pullback.functional import ModelView, loss_readout, num_samples, take
from pullback.functional.batch import Batch, copied
from pullback.functional.target_checks import logits_of
from pullback.kernels import tangent_kernel
from pullback.kernels.request import Contraction
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work
from pullback.monitor.snapshot import Snapshot

NUM_SAMPLES = 32  # kept from the first measurement
COMPARED = 8  # samples' worth of passes for the checks
DESCENT = 3.0  # passes of the loss and its gradient
MOST_OUTPUTS = 128  # a backward pass each; with more, as in language models, the kernel is that of their sum


@dataclass
class Kept:
    """Samples, and the kernel and weights of the first measurement of the parameters that are trained now."""

    x: Batch
    y: Batch
    contract: Contraction
    parameters: tuple[tuple[str, torch.Size], ...] | None = None
    since: int = 0
    kernel: Tensor = field(default_factory=Tensor)
    weights: Snapshot | None = None
    largest_drift: float = 0.0


def measure(observed: Observation) -> Measurement:
    """Of the tangent kernel of fixed samples: ``drift`` and ``cka`` since the first measurement.

    Also ``delta_k``, the largest drift so far, ``distance``, that of the weights from those of the first measurement
    (``distance_error`` where parameters are sampled), ``label_alignment``, ``effective_rank``, the ``smallest``
    eigenvalue and the ``condition`` number as they are now, ``loss``, that of these samples as the optimiser descends
    it, and ``pl``, |dL/dw|^2 / (2 L), which the PL* constant is at most, ``since``, the step of the first measurement,
    and ``contract``, what was done with the outputs: "trace", or "sum" where there are more than ``MOST_OUTPUTS``. A
    kernel is that of its parameters: where some are frozen or released, the next measurement is the first.
    """
    kept: Kept | None = observed.memory.get("tangent")
    if kept is None:
        count = slice(0, min(NUM_SAMPLES, num_samples(observed.x)))
        x, y = (copied(take(batch, count)) for batch in (observed.x, observed.y))
        kept = Kept(x, y, "trace" if _num_outputs(observed.model, observed.x) <= MOST_OUTPUTS else "sum")
    now = tangent_kernel(observed.model, kept.x, contract=kept.contract).total
    if kept.parameters != observed.parameters or kept.weights is None:
        weights = Snapshot.of(observed.model)
        kept = Kept(kept.x, kept.y, kept.contract, observed.parameters, observed.step, now, weights)
        observed.memory["tangent"] = kept
    assert kept.weights is not None  # as the kernel, from the first measurement on
    moved = kernel_drift(kept.kernel, now)
    kept.largest_drift = max(kept.largest_drift, moved.drift)
    numbers = {"drift": moved.drift, "delta_k": kept.largest_drift, "cka": moved.cka}
    numbers |= _spectrum(now) | {"effective_rank": moments(now, num_params=1).effective_rank}
    numbers["distance"], error = kept.weights.distance(observed.model)
    if error:
        numbers["distance_error"] = error
    numbers |= _descent(observed, kept)
    if isinstance(kept.y, Tensor):
        numbers["label_alignment"] = label_alignment(now, kept.y)
    values: dict[str, Any] = {name: number for name, number in numbers.items() if not math.isnan(number)}
    return Measurement(values | {"since": kept.since, "contract": kept.contract})


def _descent(observed: Observation, kept: Kept) -> dict[str, float]:
    """The kept samples' loss and how steep it is for its size; less where it is none that 0 is the least of."""
    view = ModelView.of(observed.model, where="tangent")
    with torch.enable_grad():
        loss = observed.scale * loss_readout(observed.loss_fn)(view(kept.x), kept.y, "tangent").mean()
        slopes = torch.autograd.grad(loss, list(view.parameters.values()), allow_unused=True)
    value, square = float(loss.detach()), sum(float(g.double().square().sum()) for g in slopes if g is not None)
    return {"loss": value} | ({"pl": square / (2 * value)} if value > 0 else {})


def _spectrum(kernel: Tensor) -> dict[str, float]:
    """Smallest eigenvalue and condition number, as far as rounding lets them be told."""
    values = torch.linalg.eigvalsh(kernel.double())
    smallest, largest = float(values[0]), float(values[-1])
    if smallest <= len(kernel) * torch.finfo(kernel.dtype).eps * largest:
        return {"smallest": max(smallest, 0.0)}
    return {"smallest": smallest, "condition": largest / smallest}


@torch.no_grad()
def _num_outputs(model: nn.Module, x: Batch) -> int:
    """C, of a model that returns one tensor or an object with ``logits``."""
    outputs = logits_of(ModelView.of(model, where="tangent")(take(x, slice(0, 1))))
    return int(outputs.numel()) if isinstance(outputs, Tensor) else 1  # others are refused by the kernel


def work(observed: Observation) -> Work:
    """A pass forward and, for every output, one back, and the loss's gradient; a few samples are compared alone."""
    kept = observed.memory.get("tangent")
    x = observed.x if kept is None else kept.x
    outputs = _num_outputs(observed.model, x)
    each = DESCENT + 1.0 + (outputs if outputs <= MOST_OUTPUTS else 1)
    if kept is None:
        return Work(each, fixed=COMPARED * each, most=NUM_SAMPLES)
    return Work(fixed=(COMPARED + num_samples(x)) * each)


PROBE = Probe("tangent", measure, work=work)
