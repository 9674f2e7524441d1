"""What a probe is given and what it gives back; all probes of a measurement share one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pullback._checks import PullbackError
from pullback.diagnostics import Alignment, alignment
from pullback.diagnostics.step_sizes import Optimizers
from pullback.functional import LossFunction, ModelView, loss_readout, num_samples, take
from pullback.functional.batch import Batch
from pullback.functional.plain_calls import plain_calls
from pullback.gradients.capture.captured import Captured
from pullback.kernels import Kernel
from pullback.kernels.kernel_series import kernel_of
from pullback.monitor.probes.work import FREE, Work
from pullback.monitor.snapshot import Snapshot

MOST_READ = 4096  # samples whose inputs and targets are read


@dataclass
class Observation:
    """The model at one step and the samples it is looked at with; what several probes need is computed once.

    Args:
        model: in eval mode while probes run.
        x: samples of the current batch.
        y: their targets.
        optimizer: the user's, one or several, or None.
        batch_loss: the loss the user's loop reported, or None.
        captures: makes the samples' gradient rows; of one object for the whole run.
        whole: inputs and targets of the loop's batch, of which ``x`` and ``y`` are a part, for what costs no pass; None
            where they are all of it.
        scale: the loss the optimizer descends, in means over samples: B where it is their sum.
        batch_size: B of the user's batch, of which ``x`` may be a part; None if it is all of it.
        step: number of the training step before.
        before: some weights as they were before that step, or None.
        index: where the samples of the batch stand in the data set, (B,); empty where the loop does not say.
        earlier: makes the last batches, of classes, as the model takes them, the newest first, this one among them.
        pairs: whether a probe of this measurement asks for the kernel: what rows tell alone is then read there.
        memory: what a probe keeps from one measurement to the next, under its name; one object for the whole run.
    """

    model: nn.Module
    loss_fn: LossFunction
    x: Batch
    y: Batch
    optimizer: Optimizers | None
    batch_loss: float | None
    captures: Callable[[Batch, Batch], Captured]
    scale: float = 1.0
    whole: tuple[Batch, Batch] | None = None
    batch_size: int | None = None
    step: int = 0
    before: Snapshot | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    index: tuple[int, ...] = ()
    earlier: Callable[[], list[tuple[Batch, Tensor]]] = list
    pairs: bool = False
    _refused: PullbackError | None = field(default=None, init=False)

    @cached_property
    def rows(self) -> Captured:
        """Gradient rows of the samples; what they were refused for is said to every probe that asks."""
        return self._unless_refused(lambda: self.captures(self.x, self.y))

    @cached_property
    def kernel(self) -> Kernel:
        """Backward kernel of the samples, likewise."""
        return self._unless_refused(lambda: kernel_of(self.rows))

    def _unless_refused(self, made: Callable[[], Any]) -> Any:
        if self._refused is not None:
            raise without_frames(self._refused)
        try:
            return made()
        except PullbackError as error:
            self._refused = without_frames(error)
            raise

    @cached_property
    def evaluated(self) -> tuple[Tensor, Any]:
        """Losses (N,) and outputs: those of the rows or, where there are none, of a forward pass."""
        try:
            return self.rows.values.squeeze(1), self.rows.outputs
        except PullbackError as refused:
            try:
                with torch.no_grad(), plain_calls():
                    outputs = ModelView.of(self.model, where="Monitor")(self.x)
                    return loss_readout(self.loss_fn)(outputs, self.y, "Monitor").squeeze(1), outputs
            except PullbackError:
                raise
            except Exception:  # the kernel has said it in words
                raise refused from None

    @cached_property
    def alignment(self) -> Alignment:
        """Signs and cosines of the kernel."""
        return alignment(self.kernel)

    @property
    def batch(self) -> tuple[Batch, Batch]:
        """Inputs and targets of the loop's batch, of at most ``MOST_READ`` samples."""
        if self.whole is None:
            return self.x, self.y
        part = slice(0, min(MOST_READ, num_samples(self.whole[0])))
        return take(self.whole[0], part), take(self.whole[1], part)

    @property
    def parameters(self) -> tuple[tuple[str, torch.Size], ...]:
        """Names and shapes of what is trained now; what a probe keeps may belong to others."""
        return tuple((name, p.shape) for name, p in ModelView.of(self.model, where="Monitor").parameters.items())

    @property
    def labels(self) -> Tensor | None:
        """Classes of the samples (N,), or None where targets are no classes."""
        y = self.y
        return y.long() if isinstance(y, Tensor) and not y.is_floating_point() and y.dim() == 1 else None


def without_frames(error: PullbackError) -> PullbackError:
    """The same in words alone: an error's frames hold what the next probe may need the memory of."""
    return type(error)(str(error))


@dataclass(frozen=True)
class Measurement:
    """What a probe found: numbers for the record, and arrays; and why what it also measures is not among them."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    missing: PullbackError | None = None


@dataclass(frozen=True)
class Probe:
    """A quantity to watch.

    Args:
        name: the key of its records.
        measure: an observation to a measurement.
        extra: a dearer part, added at the sparse turns of ``schedule.is_sparse_turn``.
        sparse: measure at those turns only.
        at_start: measure once, before the first step, from the model alone: there are no samples yet.
        work: what it costs beside the kernel, or a function that tells from the samples at hand, in less than a pass.
        looks: whether that function needs to look at a sample.
        needs: whether a model may have what it measures, told without a pass; it joins no preset otherwise.
        at_end: measure at the end as well, where it can be afforded.
        pairs: whether it asks for the kernel.
        by_name: asked for by its name, no part of a preset: where it finds nothing to measure it says so.
    """

    name: str
    measure: Callable[[Observation], Measurement]
    extra: Callable[[Observation], Measurement] | None = None
    sparse: bool = False
    at_start: bool = False
    at_end: bool = False
    work: Work | Callable[[Observation], Work] = FREE
    looks: bool = True
    needs: Callable[[nn.Module], bool] | None = None
    pairs: bool = False
    by_name: bool = False

    def __call__(self, observed: Observation, *, dear: bool) -> Measurement:
        """Measure, with the dearer part if ``dear``."""
        measurement = self.measure(observed)
        if not dear or self.extra is None:
            return measurement
        more = self.extra(observed)
        return Measurement(
            measurement.values | more.values, measurement.arrays | more.arrays, measurement.missing or more.missing
        )
