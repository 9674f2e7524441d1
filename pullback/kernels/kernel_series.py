"""``KernelSeries``: the kernels of a model at several weights."""

from __future__ import annotations

from torch import nn

from pullback.functional import LossFunction, ModelView, check_batch
from pullback.functional.batch import Batch
from pullback.functional.plain_calls import own_calls
from pullback.functional.readout import loss_readout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.capture.uses import Capture
from pullback.kernels.gram.blocks import assemble, partial_block
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan.make import make_plan

WHERE = "backward_kernel"


class KernelSeries:
    """Backward kernels of one model again and again while it trains, for callers that watch it.

    The first call makes every check; later ones leave out the samples that are run alone and the pass that finds one
    of them (unless ``anew``), and keep the proof of coverage and the sums, which come with forward and backward pass.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        self.model, self.readout = model, loss_readout(loss_fn)
        self._first: Capture | None = None

    def __call__(self, x: Batch, y: Batch, *, anew: bool = False) -> Kernel:
        """Kernel of a batch at the weights as they are now."""
        return kernel_of(self.rows(x, y, anew=anew))

    def rows(self, x: Batch, y: Batch, *, anew: bool = False) -> Captured:
        """Gradient rows of a batch at the weights as they are now, of which ``kernel_of`` makes the kernel."""
        check_batch(WHERE, x, y)
        view = ModelView.of(self.model, None, WHERE)
        captured = captured_rows(view, self.readout, x, y, WHERE, None if anew else self._first)
        self._first = captured.first
        return captured


def kernel_of(captured: Captured) -> Kernel:
    """Symmetric kernel of gradient rows."""
    with own_calls():
        plan = make_plan(captured, captured.num_samples, None, WHERE)
        blocks = assemble(captured, None, plan, WHERE)
    return Kernel(blocks, plan, captured, lambda names: partial_block(captured, None, plan, names), symmetric=True)
