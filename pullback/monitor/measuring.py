"""One measurement: every probe on the same samples, whatever fails."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pullback._memory import give_back
from pullback.diagnostics.step_sizes import Optimizers
from pullback.functional import LossFunction, num_samples, take, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.plain_calls import plain_calls
from pullback.kernels import KernelSeries
from pullback.monitor.called import by_sample
from pullback.monitor.handed import as_indices
from pullback.monitor.output import Output, unseen
from pullback.monitor.plan import LEAST, Allowed, Plan, asking, cheap_part, cheap_passes, dear_parts, is_dear, works
from pullback.monitor.probes import Observation, Probe
from pullback.monitor.probes.work import Work
from pullback.monitor.recent import Recent
from pullback.monitor.recognised import Recogniser
from pullback.monitor.seen_batches import SeenBatches
from pullback.monitor.snapshot import Snapshot
from pullback.runs.schema import in_words


@dataclass(frozen=True)
class HandedOver:
    """What the loop hands over at a step: its batch, loss and places in the data set; some weights before the step."""

    x: Batch
    y: Batch
    loss: float | Tensor | None = None
    before: Snapshot | None = None
    index: Any = None


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
        self.recent, self.seen_batches = Recent(), SeenBatches()
        self._recogniser = Recogniser(model, loss_fn)
        self._memory: dict[str, Any] = {}
        self._measured: dict[str, int] = {}  # probe -> the last step it ran at
        self._failed: dict[str, str] = {}  # probes of this measurement
        self._works: dict[str, Work] = {}  # of the last measurement
        self.is_first = True  # whether the next is the run's first

    def names(self) -> set[str]:
        """Of the probes."""
        return {probe.name for probe in self.probes}

    def targets(self, x: Batch, y: Batch) -> Batch:
        """See ``Recogniser.targets``."""
        return self._recogniser.targets(x, y)

    def measure_start(self, output: Output) -> None:
        """What is measured once, before the first step, from the model alone."""
        probes = [probe for probe in self.probes if probe.at_start]
        if probes:
            captures = KernelSeries(self.model, self.loss_fn).rows
            seen = Observation(self.model, self.loss_fn, (), (), self.optimizer, None, captures)
            with undisturbed(self.model, training=False):
                for probe in probes:
                    self._run(output, 0, probe, seen, dear=False)

    def measure(self, output: Output, step: int, seen: HandedOver, allowed: Allowed) -> Plan:
        """Measure with what may be spent; returns what was taken on."""
        plan = Plan(0)
        try:
            everything, read = self._observation(output, step, seen)
            with undisturbed(self.model, training=False, derivatives=False), by_sample(self.model, read):
                plan = self._plan(everything, allowed)
                if plan.is_left_out:
                    return plan
                part, of = slice(0, plan.num_samples), everything
                probes = [probe for probe in self.probes if plan.has(probe)]
                pairs = any(probe.pairs for probe in probes)
                cheap = replace(of, x=take(of.x, part), y=take(of.y, part), pairs=pairs)
                own = {name for name in plan.dear if not self._works[name].is_free}
                for place, probe in enumerate(probes):
                    given = cheap
                    if probe.name in own:
                        if own.issuperset(each.name for each in probes[place:]):
                            cheap = of  # the kernel's memory is for what comes now
                        count = slice(0, plan.dear[probe.name])
                        given = replace(of, x=take(of.x, count), y=take(of.y, count))
                    self._run(output, step, probe, given, dear=plan.extras)
                    if probe.name in own:  # else the next one adds to a peak that the process keeps
                        give_back()
        # Whatever happens is recorded, and training goes on. No name is kept of the error: it would hold the tensors
        # of its frames, in a cycle, until the garbage collector comes by, and the next probe may need their memory.
        except Exception as error:
            output.error(step, "monitor", error)
            self._failed["all probes"] = in_words(error)
        if self._failed:
            output.say_once("probes", unseen(self._failed))
            self._failed = {}
        return plan

    def measure_last(self, output: Output, step: int, seen: HandedOver, most: float) -> tuple[list[str], float]:
        """What the end is to have as well, of so many passes at most; returns the probes that ran, and their passes."""
        probes = [probe for probe in self.probes if probe.at_end and self._measured.get(probe.name) != step]
        dear: dict[str, int] = {}
        taken = 0.0
        if not probes:
            return [], taken
        try:
            everything, read = self._observation(output, step, seen)
            with undisturbed(self.model, training=False, derivatives=False), by_sample(self.model, read):
                self._works = works(probes, everything)
                available = num_samples(everything.x)
                dear, taken, _ = dear_parts(self._works, [probe.name for probe in probes], most, available)
                for probe in probes:
                    part = slice(0, dear.get(probe.name, 0))
                    if part.stop:
                        given = replace(everything, x=take(everything.x, part), y=take(everything.y, part))
                        self._run(output, step, probe, given, dear=False)
        except Exception as error:  # as above
            output.error(step, "monitor", error)
        return [*dear], taken

    def passes(self, samples: int) -> float:
        """Of the probes that always run, as far as is known before they are given the samples."""
        always = [work for work in self._always().values() if not is_dear(work)]
        return cheap_passes(always, samples, first=self.is_first)

    def least(self, samples: int, *, later: bool = False) -> float:
        """Of a measurement that cannot be left out, ``later`` than the first: on the fewest samples, of what all share.

        With what is looked at to plan it.
        """
        shared = cheap_passes((), min(LEAST, samples), first=self.is_first and not later)
        return shared + self._recogniser.expected(samples, self.recent.batch_size or samples) + asking(self.probes)

    def _always(self) -> dict[str, Work]:
        return {p.name: self._works[p.name] for p in self.probes if not p.sparse and p.name in self._works}

    def _plan(self, observed: Observation, allowed: Allowed) -> Plan:
        available = num_samples(observed.x)
        asked = [probe for probe in self.probes if not probe.sparse or probe.name in allowed.wanted]
        with plain_calls():
            self._works = works(asked, observed)
        spent, always = self._recogniser.passes + asking(asked), self._always()
        count, without = cheap_part(always, allowed, spent, available, first=self.is_first)
        if not count:
            return Plan(0, available, cheap=spent)
        kept = [work for name, work in always.items() if name not in without]
        cheap = spent + cheap_passes(kept, count, first=self.is_first)
        self.is_first = False
        wanted = [probe.name for probe in asked if probe.sparse]
        dear, dearer, waiting = dear_parts(self._works, wanted, min(allowed.dear, allowed.most - cheap), available)
        return Plan(
            count, available, dear, extras=allowed.extras, cheap=cheap, dearer=dearer, waiting=waiting,
            without=without,
        )  # fmt: skip

    def _observation(self, output: Output, step: int, given: HandedOver) -> tuple[Observation, bool]:
        """What probes are given, and whether the model returns a row for every position."""
        batch = self.recent.batch_size or num_samples(given.x)
        x, y = self.recent.together(given.x, given.y)
        index = self._index(output, step, given, joined=x is not given.x)
        read = self._recogniser.said(output, step, x, y, batch)
        x, y = read.data(x, y)
        part = slice(0, min(self.max_samples, num_samples(x)))
        seen = Observation(
            self.model,
            read.loss_fn,
            take(x, part),
            take(y, part),
            self.optimizer,
            None if given.loss is None else float(given.loss),
            read.captures,
            whole=(x, y),
            scale=read.scale(batch),
            batch_size=batch,
            step=step,
            before=given.before and given.before.still_there(self.model),
            memory=self._memory,
            index=index if len(index) == num_samples(x) else (),
            earlier=lambda: [read.data(*pair) for pair in self.seen_batches.samples()],
        )
        return seen, read.unfolded

    @staticmethod
    def _index(output: Output, step: int, given: HandedOver, *, joined: bool) -> tuple[int, ...]:
        """Places in the data set, where the loop tells them of each sample; of batches that are joined none."""
        if given.index is None or joined:
            return ()
        try:
            index = as_indices(given.index)
        except Exception as error:
            output.refuse(step, "samples", "index", in_words(error))
            return ()
        if len(index) != (count := num_samples(given.x)):
            output.refuse(step, "samples", "index", f"{len(index)} of them for {count} samples")
            return ()
        return index

    def _run(self, output: Output, step: int, probe: Probe, observed: Observation, *, dear: bool) -> None:
        self._measured[probe.name] = step
        evaluates = probe.at_start or not self._works[probe.name].is_free
        try:
            with plain_calls() if evaluates else nullcontext():
                found = probe(observed, dear=dear)
        except Exception as error:  # as above
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
                self.recent.stop()
            output.error(step, probe.name, error)
            self._failed[probe.name] = in_words(error)
            return
        if found.missing is not None and (found.values or probe.by_name):
            output.error(step, probe.name, found.missing)
            self._failed[f"part of {probe.name}" if found.values else probe.name] = in_words(found.missing)
        if found.values:
            output.values(step, probe.name, found.values)
        for name, array in found.arrays.items():
            output.array(step, probe.name, name, array)
