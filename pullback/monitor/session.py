"""``Monitor``: around a user's own loop, measures at its schedule, and appends to a run record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from pullback._checks import input_error
from pullback.diagnostics.step_sizes import Optimizers, step_groups
from pullback.functional import LossFunction, ModelView
from pullback.functional.batch import Batch
from pullback.functional.unwrap import is_replica
from pullback.monitor.describe import describe
from pullback.monitor.handed import as_index, as_number, as_tensors, chosen_optimizers
from pullback.monitor.measuring import Measurer
from pullback.monitor.output import Output
from pullback.monitor.probes import chosen_probes
from pullback.monitor.recognised import chosen_loss
from pullback.monitor.schedule import Schedule, chosen_budget, is_sparse_turn
from pullback.monitor.sinks import Sink
from pullback.monitor.snapshot import Snapshot
from pullback.runs import RunWriter
from pullback.runs.schema import in_words


class Monitor:
    """Measures a model while it trains, and leaves no trace in it.

    Weights, gradients, train and eval modes, buffers, hooks and the global random state are after a measurement
    what they were before it. Probes run in eval mode on the first ``max_samples`` samples of the batch at hand; where
    that has one sample or two, up to 32 of the batches before it join them, as long as memory allows. A probe that
    fails is recorded and never stops training, whatever the loop hands over; what cannot be recorded is said once. An
    exception of the user's loop passes through.

    To see the model before its first step, call ``measure`` with a batch before the loop.

    Under ``DistributedDataParallel`` make one on every process, or on the first alone: the first measures and writes,
    without any communication, the others only count steps. Sharded models are refused; see ``docs/monitor.md``.

    Args:
        model: the model being trained.
        loss_fn: as the loop has it, of (outputs, targets): a module, a function of torch's or your own, of the mean,
            the sum or one loss per sample, which the first batch tells; None where the model returns its loss.
        run_dir: folder of the record; must be new or empty, unless ``resume`` is given.
        optimizer: for the learning rate; a list of several, if they hold parameters of this model; None leaves out what
            needs it.
        every: measure after every so many steps.
        probes: "light", "standard" or "full", or names out of ``monitor.PROBES``.
        max_samples: N, samples a measurement looks at.
        budget: share of the wall time that measuring may take: after the first few, measurements that are due are
            left out until enough unwatched time has passed; ``num_skipped`` counts them. None measures whenever due;
            "auto" is 0.001 for "light" and 0.015 for all else.
        about: anything else to store with the run (data, options); what is no number, text, list or dict is stored as
            its text. ``{"least_loss": 0.0}`` says that a loss of your own cannot be lower, see ``docs/advisor.md``.
        resume: steps that the weights have behind them (0 at the start): the run in ``run_dir``, if there is one, goes
            on from there, and what it holds of later steps, which are now made once more, is left behind.
        forward: called as ``sink(step, scalars)`` once a measurement; see ``to_tensorboard``, ``to_wandb``.

    Attributes:
        num_steps: counted so far.
        num_measurements: made, with those of a run that is continued.
        num_skipped: that were due and too dear.
        seconds: taken by measuring.

    Raises:
        InputError: the folder holds something, an unknown preset or probe, ``every`` or ``max_samples`` below 1,
            ``resume`` below 0 or of a run of another model.
        UnsupportedError: the parameters are spread over processes (FSDP, tensor parallelism).

    Cost: a measurement of the standard preset takes about as long as two to four training steps; the record
        ``cost`` says how long each took, ``Monitor.seconds`` the sum.

    Example:
        >>> import tempfile, torch
        >>> _ = torch.manual_seed(0)
        >>> model, loss_fn = nn.Linear(4, 2), nn.CrossEntropyLoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with Monitor(model, loss_fn, folder, optimizer=optimizer, every=5) as monitor:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         loss = loss_fn(model(x), y)
        ...         loss.backward()
        ...         optimizer.step()
        ...         monitor.step(x, y, loss=loss)
        >>> from pullback.runs import load_run
        >>> load_run(folder).series("loss", "loss")[0]
        [5, 10]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        run_dir: str | Path,
        *,
        optimizer: Optimizers | None = None,
        every: int = 50,
        probes: str | Sequence[str] = "standard",
        max_samples: int = 256,
        budget: float | str | None = "auto",
        about: dict[str, Any] | None = None,
        resume: int | None = None,
        forward: Sequence[Sink] = (),
    ) -> None:
        where = "Monitor"
        optimizers = chosen_optimizers(optimizer, where)
        self.model = model
        every = every if (whole := as_index(every)) is None or isinstance(every, bool) else whole  # NumPy's, torch's
        self.schedule = Schedule(every, budget := chosen_budget(budget, probes))
        if max_samples < 2:
            raise input_error(where, "`max_samples` of at least 2", repr(max_samples), "Pass more samples")
        made = as_index(resume)
        if resume is not None and (isinstance(resume, bool) or made is None or made < 0):
            raise input_error(where, "`resume` as a whole number from 0", repr(resume), "Pass the steps made so far")
        loss_fn = chosen_loss(loss_fn)
        self._measurer = Measurer(model, loss_fn, optimizers, chosen_probes(probes, where), max_samples)
        self.num_steps = made or 0
        self.num_measurements = 0
        self.num_skipped = 0
        self.seconds = 0.0
        self._last_cost = {True: 0.0, False: 0.0}  # of a measurement with and without the dearer parts
        self._last_end = dict.fromkeys((True, False), time.perf_counter())
        self._dear_wanted = False
        self._measured_at_start = 0
        self._before: Snapshot | None = None
        settings = {
            "every": every,
            "probes": probes if isinstance(probes, str) else list(probes),
            "max_samples": max_samples,
            "budget": budget,
        }
        about = describe(ModelView.of(model, where=where), loss_fn, optimizers, settings) | (about or {})
        self._output = None if is_replica(model) else self._open(run_dir, about, made, forward)
        if self._output is not None and self._output.writer.earlier is None and not self.num_steps:
            start = time.perf_counter()
            self._measurer.measure_start(self._output)
            self.seconds += time.perf_counter() - start

    def _open(self, run_dir: str | Path, about: dict[str, Any], resume: int | None, sinks: Sequence[Sink]) -> Output:
        """Begin the record, or go on where it stood."""
        writer = RunWriter(run_dir, about, resume=resume)
        if writer.earlier is not None:
            costs = writer.earlier.series("cost", "seconds")[1]
            self.num_measurements, self.seconds = len(costs), sum(costs)
        output = Output(writer, sinks)
        if any(math.isnan(group.rate) for group in step_groups(self._measurer.optimizer or ())):
            rates = "the optimizer shows no learning rate that is a number"
            output.say_once("rate", f"{rates}; what it bears, and effective rates, are not recorded")
        return output

    @property
    def num_lost(self) -> int:
        """Records that the disk did not take."""
        return 0 if self._output is None else self._output.num_lost

    def step(self, x: Batch, y: Batch, loss: Any = None, *, step: int | None = None) -> None:
        """Count one training step, after ``optimizer.step()``, and measure if the schedule says so.

        With gradient accumulation call it once a step of the optimizer, with the last of the batches.

        Args:
            x: the batch's inputs, (B, ...).
            y: its targets, (B, ...).
            loss: the loss the loop computed, recorded beside the measured one: a number, tensor or array; of several
                numbers, one loss a sample, their mean.
            step: the step's number, above the last; None, and what is no such number, takes the next.
        """
        with self._harmless("step"):
            last, self.num_steps = self.num_steps, self._counted(step)
            if self._output is None:
                return
            x, y = as_tensors(self.model, x), as_tensors(self.model, y)
            self._measurer.recent.see(x)
            if self.schedule.is_due(self.num_steps, last):
                before = self._before if self.num_steps == last + 1 else None
                self._measure_if_affordable(self._output, x, y, loss, before)
            elif last == 0 and loss is not None:  # what a loss that leaps at once is compared with
                number = self._number(self._output, loss)
                if number is not None:
                    self._output.values(self.num_steps, "start", {"batch_loss": number}, forward=False)
            self._measurer.recent.add(x, y)
            self._before = self._snapshot(self._output)

    @contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """Whatever happens in the block is said, and training goes on."""
        try:
            yield
        except Exception as error:
            if self._output is not None:
                self._output.error(self.num_steps, "monitor", error)
                self._output.say_once(what, f"`{what}` failed ({in_words(error)})")

    def _counted(self, step: Any) -> int:
        """The number of the step that was made."""
        following = self.num_steps + 1
        number = None if step is None else as_index(step)
        if number is not None and number >= following:
            return number
        if step is not None and self._output is not None:
            expected = f"`step` as a whole number above the last, {self.num_steps}"
            remedy = "Call it once after each optimizer.step()"
            error = input_error("Monitor.step", expected, in_words(step), remedy)
            self._output.refuse_once(following, "number of the step", error, f"It is counted as {following}")
        return following

    def _number(self, output: Output, loss: Any) -> float | None:
        """The loop's loss, if it is one that can be recorded."""
        try:
            return None if loss is None else as_number(loss)
        except Exception as error:
            output.refuse(self.num_steps, "loss", "batch_loss", in_words(error))
            return None

    def _measure_if_affordable(self, output: Output, x: Batch, y: Batch, loss: Any, before: Snapshot | None) -> None:
        wanted = self._dear_wanted or is_sparse_turn(self.num_measurements + 1 - self._measured_at_start)
        if self._can_afford(dear=False):
            dear = wanted and self._can_afford(dear=True)
            self._dear_wanted = wanted and not dear
            self._timed_measurement(output, x, y, loss, before, dear=dear)
        else:
            self.num_skipped += 1

    def _snapshot(self, output: Output) -> Snapshot | None:
        """Weights before the next step, if it will be measured with a probe that asks for them."""
        if not self.is_due() or "updates" not in self._measurer.names():
            return None
        start = time.perf_counter()
        try:
            return Snapshot.of(self.model)
        except Exception as error:  # no memory, for example: training goes on
            output.error(self.num_steps, "updates", error)
            return None
        finally:
            self.seconds += time.perf_counter() - start

    def is_due(self, step: int | None = None) -> bool:
        """Whether ``step`` will measure at that step, the next if None, as far as the schedule says."""
        step = self.num_steps + 1 if step is None else step
        return self._output is not None and self.schedule.is_due(step, self.num_steps)

    def _can_afford(self, *, dear: bool) -> bool:
        unwatched = time.perf_counter() - self._last_end[dear]
        return self.schedule.is_affordable(self.num_measurements, self._last_cost[dear], unwatched)

    def measure(self, x: Batch, y: Batch, loss: Any = None) -> None:
        """Measure now with every probe, whatever schedule and budget say: at the end of training, for example."""
        with self._harmless("measure"):
            if self._output is not None:
                x, y = as_tensors(self.model, x), as_tensors(self.model, y)
                self._measured_at_start += not self.num_steps  # it takes no turn of those that follow
                self._timed_measurement(self._output, x, y, loss, None, dear=True)

    def _timed_measurement(
        self,
        output: Output,
        x: Batch,
        y: Batch,
        loss: Any,
        before: Snapshot | None,
        *,
        dear: bool,
    ) -> None:
        start = time.perf_counter()
        try:
            self.num_measurements += 1
            number = self._number(output, loss)
            self._measurer.measure(output, self.num_steps, x, y, number, before, dear=dear)
            output.values(self.num_steps, "cost", {"seconds": time.perf_counter() - start})
            output.send(self.num_steps)
        finally:
            taken = time.perf_counter() - start
            self.seconds += taken
            self._last_cost[dear] = taken
            self._last_end |= {False: start + taken} | ({True: start + taken} if dear else {})

    def log(self, probe: str, values: dict[str, Any]) -> None:
        """Append numbers of the loop's own (an epoch's test accuracy, say) at the current step.

        Numbers may be Python's, tensors or arrays. What a record cannot hold is left out and said once: other objects,
        lists deeper than a list of lists, arrays of more than 65,536 numbers.
        """
        start = time.perf_counter()
        with self._harmless("log"):
            if self._output is not None:
                self._output.values(self.num_steps, probe, values)
                self._output.send(self.num_steps)
        self.seconds += time.perf_counter() - start

    def log_error(self, probe: str, error: BaseException, *, step: int | None = None) -> None:
        """Append that something could not be measured, at the current step or, in place of ``step``, at the next."""
        with self._harmless("log_error"):
            self.num_steps = self.num_steps if step is None else self._counted(step)
            if self._output is not None:
                self._output.error(self.num_steps, probe, error)

    def close(self) -> None:
        """Finish the record; the files stay readable whether or not this is called."""
        if self._output is not None:
            self._output.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
