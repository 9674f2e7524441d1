"""Does the tangent kernel move? A network in the linear regime keeps it, one that learns features turns it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics import kernel_drift, label_alignment, moments
from pullback.functional import ModelView, num_samples, take
from pullback.functional.batch import Batch, copied
from pullback.functional.losses import logits_of
from pullback.kernels import tangent_kernel
from pullback.kernels.tangent import Contraction
from pullback.monitor.probes.base import Measurement, Observation, Probe
from pullback.monitor.probes.work import Work

NUM_SAMPLES = 32  # kept from the first measurement
COMPARED = 8  # samples' worth of passes for the checks
MOST_OUTPUTS = 128  # a backward pass each; with more, as in language models, the kernel is that of their sum


def measure(seen: Observation) -> Measurement:
    """Of the tangent kernel of fixed samples: ``drift`` and ``cka`` since the first measurement.

    Also ``label_alignment`` and ``effective_rank`` as it is now, ``since``, the step of the first measurement, and
    ``contract``, what was done with the outputs: "trace", or "sum" where there are more than ``MOST_OUTPUTS``. A kernel
    is that of its parameters: where some are frozen or released, the next measurement is the first.
    """
    kept = seen.memory.get("tangent")
    if kept is None:
        count = slice(0, min(NUM_SAMPLES, num_samples(seen.x)))
        x, y = (copied(take(batch, count)) for batch in (seen.x, seen.y))
        contract: Contraction = "trace" if _num_outputs(seen.model, seen.x) <= MOST_OUTPUTS else "sum"
        kept = x, y, contract, (), 0, Tensor()
    x, y, contract, parameters, since, first = kept
    now = tangent_kernel(seen.model, x, contract=contract).total
    if parameters != seen.parameters:
        since, first = seen.step, now
        seen.memory["tangent"] = x, y, contract, seen.parameters, since, first
    moved = kernel_drift(first, now)
    numbers = {"drift": moved.drift, "cka": moved.cka, "effective_rank": moments(now, num_params=1).effective_rank}
    if isinstance(y, Tensor):
        numbers["label_alignment"] = label_alignment(now, y)
    values: dict[str, Any] = {name: number for name, number in numbers.items() if not math.isnan(number)}
    return Measurement(values | {"since": since, "contract": contract})


@torch.no_grad()
def _num_outputs(model: nn.Module, x: Batch) -> int:
    """C, of a model that returns one tensor or an object with ``logits``."""
    found = logits_of(ModelView.of(model, where="tangent")(take(x, slice(0, 1))))
    return int(found.numel()) if isinstance(found, Tensor) else 1  # others are refused by the kernel


def work(seen: Observation) -> Work:
    """A pass forward and, for every output, one back; a few samples are compared alone."""
    kept = seen.memory.get("tangent")
    x = seen.x if kept is None else kept[0]
    outputs = _num_outputs(seen.model, x)
    each = 1.0 + (outputs if outputs <= MOST_OUTPUTS else 1)
    if kept is None:
        return Work(each, fixed=COMPARED * each, most=NUM_SAMPLES)
    return Work(fixed=(COMPARED + num_samples(x)) * each)


PROBE = Probe("tangent", measure, work=work)
