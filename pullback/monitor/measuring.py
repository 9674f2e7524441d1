"""One measurement: every probe on the same samples, whatever fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pullback.diagnostics.step_sizes import Optimizers
from pullback.functional import LossFunction, num_samples, take, undisturbed
from pullback.functional.batch import Batch
from pullback.kernels import KernelSeries
from pullback.monitor.output import Output, unseen
from pullback.monitor.probes import Observation, Probe
from pullback.monitor.recent import Recent
from pullback.monitor.recognised import Recogniser, by_sample
from pullback.monitor.snapshot import Snapshot
from pullback.runs.schema import in_words


class Measurer:
    """The probes of one run and what they keep from one measurement to the next.

    Args:
        model: looked at in eval mode, and left as it was.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        optimizer: the user's, one or several, or None.
        probes: in the order they run.
        max_samples: N, samples a measurement looks at.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        optimizer: Optimizers | None,
        probes: Sequence[Probe],
        max_samples: int,
    ) -> None:
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.probes, self.max_samples = tuple(probes), max_samples
        self.recent = Recent()
        self._recogniser = Recogniser(model, loss_fn)
        self._memory: dict[str, Any] = {}
        self._failed: dict[str, str] = {}  # probes of this measurement

    def names(self) -> set[str]:
        """Of the probes."""
        return {probe.name for probe in self.probes}

    def measure_start(self, output: Output) -> None:
        """What is measured once, before the first step, from the model alone."""
        probes = [probe for probe in self.probes if probe.at_start]
        if probes:
            kernels = KernelSeries(self.model, self.loss_fn)
            seen = Observation(self.model, self.loss_fn, (), (), self.optimizer, None, kernels)
            with undisturbed(self.model, training=False):
                for probe in probes:
                    self._run(output, 0, probe, seen, dear=False)

    def measure(
        self,
        output: Output,
        step: int,
        x: Batch,
        y: Batch,
        loss: float | None,
        before: Snapshot | None,
        *,
        dear: bool,
    ) -> None:
        """Measure with every probe, or with ``dear=False`` with those that are not."""
        try:
            seen, read = self._observation(output, step, x, y, loss, before)
            with undisturbed(self.model, training=False), by_sample(self.model, read):
                for probe in self.probes:
                    if not probe.at_start and (dear or not probe.sparse):
                        self._run(output, step, probe, seen, dear=dear)
        # Whatever happens is recorded, and training goes on. No name is kept of the error: it would hold the tensors
        # of its frames, in a cycle, until the garbage collector comes by, and the next probe may need their memory.
        except Exception as error:
            output.error(step, "monitor", error)
            self._failed["all probes"] = in_words(error)
        if self._failed:
            output.say_once("probes", unseen(self._failed))
            self._failed = {}

    def _observation(
        self, output: Output, step: int, x: Batch, y: Batch, loss: float | None, before: Snapshot | None
    ) -> tuple[Observation, bool]:
        """What probes are given, and whether the model returns a row for every position."""
        batch = self.recent.batch_size or num_samples(x)
        x, y = self.recent.together(x, y)
        read = self._recogniser.said(output, step, x, y, batch)
        x, y = read.data(x, y)
        part = slice(0, min(self.max_samples, num_samples(x)))
        seen = Observation(
            self.model,
            read.loss_fn,
            take(x, part),
            take(y, part),
            self.optimizer,
            loss,
            read.kernels,
            scale=read.scale(batch),
            batch_size=batch,
            step=step,
            before=before and before.still_there(self.model),
            memory=self._memory,
        )
        return seen, read.unfolded

    def _run(self, output: Output, step: int, probe: Probe, seen: Observation, *, dear: bool) -> None:
        try:
            found = probe(seen, dear=dear)
        except Exception as error:  # as above
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
                self.recent.stop()
            output.error(step, probe.name, error)
            self._failed[probe.name] = in_words(error)
            return
        if found.values:
            output.values(step, probe.name, found.values)
        for name, array in found.arrays.items():
            output.array(step, probe.name, name, array)
