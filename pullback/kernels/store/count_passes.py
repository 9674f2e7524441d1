"""Operations of a sample's way through a model, counted while it goes there."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pullback.functional import undisturbed
from pullback.functional.batch import Batch
from pullback.functional.readout import Readout
from pullback.gradients.capture.captured import UNSEEN, Captured
from pullback.gradients.capture.passes import capture

ALONE = 3  # samples of a block that are compared with themselves alone
PLAIN = 3  # forward passes a forward and a backward pass of plain autograd cost


@dataclass(frozen=True)
class Passes:
    """Operations of a sample's way through the model, an add and a multiply counted as two.

    Args:
        forward: matrix products, convolutions and attention of the forward pass.
        backward: those of the gradients that are recorded.
        checks: of the sums and norms of its gradients.
    """

    forward: float
    backward: float
    checks: float


_ATTENTION = {  # of CPUs, which torch's counter leaves out
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
    ),
}


class _Untold(nullcontext[None]):
    """In place of torch's tracker of modules, whose hooks fail on parameters that parametrisations take as inputs."""

    parents = ("Global",)


def count_passes(captured: Captured, readout: Readout, x: Batch, y: Batch, where: str) -> Passes:
    """Operations of one sample, counted while the samples of ``captured`` go through the model once more."""
    seen: list[int] = []
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    counter.mod_tracker = _Untold()  # type: ignore[assignment]
    with counter, undisturbed(captured.view.model):

        def values(outputs: Any, targets: Batch, caller: str) -> Tensor:
            seen.append(counter.get_total_flops())  # the forward pass is over
            return readout.values(outputs, targets, caller)

        capture(captured.view, replace(readout, values=values), x, y, where, weighted=True)
    forward, both = (flops / captured.num_samples for flops in (seen[0], counter.get_total_flops()))
    fallback = PLAIN * forward if UNSEEN[0] in captured.rules else 0.0
    return Passes(forward, both - forward + fallback, sum(f.check_flops() for f in captured.factors))
