"""``Monitor``: around a user's own loop, measures at its schedule, and appends to a run record."""

from __future__ import annotations

import math
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
from pullback.functional.model_view import check_is_module
from pullback.functional.unwrap import is_replica
from pullback.monitor.describe import describe
from pullback.monitor.findings import OnFinding, chosen_callable
from pullback.monitor.handed import as_index, as_tensors, chosen_optimizers, chosen_start
from pullback.monitor.measuring import Measurer
from pullback.monitor.output import Output
from pullback.monitor.probes import chosen_probes
from pullback.monitor.recognised import chosen_loss
from pullback.monitor.schedule import Schedule, chosen_budget
from pullback.monitor.sinks import Sink
from pullback.monitor.watched_run import Watch
from pullback.runs import RunWriter
from pullback.runs.folder import check_place, chosen_on_exists
from pullback.runs.schema import in_words

NO_RATE = "the optimizer shows no learning rate that is a number; what it bears, and effective rates, are not recorded"


class Monitor:
    """Sees every step of a training, measures the model at some of them, and leaves no trace in it.

    Of every step it keeps the loss, the learning rates and, where it is next to free, the gradient norm; a loss that is
    not finite, or leaps, is recorded at once and said. Measurements, after steps 1, 2, 4 and so on, every ``every``
    steps and at the end, take a share of the training's work, the same on every machine; see ``docs/monitor.md``.

    Weights, gradients, train and eval modes, buffers, hooks and the global random state are after a measurement
    what they were before it. Probes run in eval mode on at most ``max_samples`` samples of the batch at hand; where
    that has one sample or two, up to 32 of the batches before it join them, as long as memory allows. A probe that
    fails is recorded and never stops training, whatever the loop hands over; what cannot be recorded is said once. An
    exception of the user's loop passes through.

    Under ``DistributedDataParallel`` make one on every process, or on the first alone: the first measures and writes,
    without any communication, the others only count steps. Sharded models are refused; see ``docs/monitor.md``.

    Args:
        model: the model being trained.
        loss_fn: as the loop has it, of (outputs, targets): a module, a function of torch's or your own, of the mean,
            the sum or one loss per sample, which the first batch tells; None where the model returns its loss.
        run_dir: folder of the record.
        optimizer: for the learning rate; a list of several, if they hold parameters of this model; None leaves out what
            needs it.
        every: steps between measurements, from the first ``every`` on. ``measure`` sees the model before the loop.
        probes: "light", "standard" or "full", or names out of ``monitor.PROBES``.
        max_samples: N, samples a measurement looks at, at most.
        budget: share of the training's forward-and-backward passes of samples that measuring may take: with fewer
            samples, then by leaving out what is due, never so that more than ``every`` steps, or a fifth of those made,
            lie between two. "auto" is 0.05. None measures every ``every``-th step and the last, whatever that costs.
        about: anything else to store with the run (data, options); what is no number, text, list or dict is stored as
            its text. ``{"least_loss": 0.0}`` says that a loss of your own cannot be lower, see ``docs/advisor.md``.
        resume: steps that the weights have behind them (0 at the start): the run in ``run_dir``, if there is one, goes
            on from there, and what it holds of later steps, which are now made once more, is left behind.
        on_exists: what to do where ``run_dir`` is taken: "refuse", before anything is built; "resume", to go on with
            its run after ``resume`` steps, or after the last that it knows; "number", to write to the next free name,
            ``run_dir-2``, ``run_dir-3`` and so on, and to say which. None is "resume" where ``resume`` is given, else
            "refuse".
        forward: called as ``sink(step, scalars)`` once a measurement; see ``to_tensorboard``, ``to_wandb``.
        on_finding: called with each finding of ``pullback.diagnose`` above "info" once it stands, one a name and layer.
            What it raises leaves ``step``, which is a way to stop the training.

    Attributes:
        run_dir: folder of the record.
        num_steps: counted so far.
        num_measurements: made, with those of a run that is continued.
        num_skipped: that were due and left out.
        seconds: taken by measuring. Nothing hangs on it.

    Raises:
        InputError: the folder holds something; an unknown preset or probe; a bad number; ``resume`` of another model.
        UnsupportedError: the parameters are spread over processes (FSDP, tensor parallelism).

    Cost: ``budget``; the start takes at most 20 steps' worth of passes. The record ``work`` says the passes of
        each measurement, ``cost`` its seconds, ``Monitor.seconds`` their sum. A reference to the last batch is kept for
        the measurement at the end: memory of one batch.

    Example:
        >>> import tempfile, torch
        >>> _ = torch.manual_seed(0)
        >>> model, loss_fn = nn.Linear(4, 2), nn.CrossEntropyLoss()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.randn(16, 4), torch.randint(2, (16,))
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> with Monitor(model, loss_fn, folder, optimizer=optimizer, every=5, budget=None) as monitor:
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
        on_exists: str | None = None,
        forward: Sequence[Sink] = (),
        on_finding: OnFinding | None = None,
    ) -> None:
        check_is_module(model, "Monitor")
        chosen_callable(on_finding, "Monitor")
        made = chosen_start(max_samples, resume, "Monitor")
        self.run_dir, on_exists = Path(run_dir), chosen_on_exists(on_exists, made, "Monitor")
        if not is_replica(model):
            check_place(run_dir, on_exists)
        optimizers = chosen_optimizers(optimizer, "Monitor")
        self.model = model
        every = every if (whole := as_index(every)) is None or isinstance(every, bool) else whole  # NumPy's, torch's
        self.schedule = Schedule(every, budget := chosen_budget(budget))
        loss_fn = chosen_loss(loss_fn)
        chosen = chosen_probes(probes, model, "Monitor")
        self.num_steps = made or 0
        asked = probes if isinstance(probes, str) else list(probes)
        settings = {"every": every, "probes": asked, "max_samples": max_samples, "budget": budget}
        about = describe(ModelView.of(model, where="Monitor"), loss_fn, optimizers, settings) | (about or {})
        self._watch: Watch | None = None
        if not is_replica(model):
            writer = RunWriter(run_dir, about, resume=made, on_exists=on_exists)
            self.run_dir, self.num_steps = writer.path, writer.made
            output = Output(writer, forward)
            if writer.path != Path(run_dir):
                output.say_once("folder", f"{run_dir} is taken, so that the record is written to {writer.path}")
            if any(math.isnan(group.rate) for group in step_groups(optimizers or ())):
                output.say_once("rate", NO_RATE)
            measurer = Measurer(model, loss_fn, optimizers, chosen, max_samples)
            self._watch = Watch(measurer, self.schedule, output, self.num_steps, on_finding)

    @property
    def num_measurements(self) -> int:
        """Measurements made."""
        return 0 if self._watch is None else self._watch.num_measurements

    @property
    def num_skipped(self) -> int:
        """Measurements that were due and left out."""
        return 0 if self._watch is None else self._watch.turns.left_out

    @property
    def num_lost(self) -> int:
        """Records that the disk did not take."""
        return 0 if self._watch is None else self._watch.output.num_lost

    @property
    def seconds(self) -> float:
        """Taken by measuring."""
        return 0.0 if self._watch is None else self._watch.seconds

    def step(self, x: Batch, y: Batch, loss: Any = None, *, step: int | None = None, index: Any = None) -> None:
        """Count one training step, after ``optimizer.step()``, and measure if the schedule says so.

        With gradient accumulation call it once a step of the optimizer, with the last of the batches.

        Args:
            x: the batch's inputs, (B, ...).
            y: its targets, (B, ...).
            loss: the loss the loop computed, kept at every step: a number, tensor or array; of several numbers, one
                loss a sample, their mean. One on a device is not waited for.
            step: the step's number, above the last; None, and what is no such number, takes the next.
            index: where the samples stand in the data set, (B,) whole numbers: samples that stand out are named by it.
        """
        try:  # as `_harmless`, whose block costs more than what most steps do in it
            last, self.num_steps = self.num_steps, self._counted(step)
            if self._watch is not None:
                x, y = as_tensors(self.model, x), as_tensors(self.model, y)
                self._watch.step(self.num_steps, last, x, y, loss, index)
        except Exception as error:
            self._failed("step", error)
        self._hand_on()

    def _hand_on(self) -> None:
        """Call ``on_finding`` with what is new; outside of what is harmless, so that it can stop the training."""
        if self._watch is not None:
            self._watch.findings.hand_on()

    @contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        """Whatever happens in the block is said, and training goes on."""
        try:
            yield
        except Exception as error:
            self._failed(what, error)

    def _failed(self, what: str, error: Exception) -> None:
        if self._watch is not None:
            self._watch.output.error(self.num_steps, "monitor", error)
            self._watch.output.say_once(what, f"`{what}` failed ({in_words(error)})")

    def _counted(self, step: Any) -> int:
        """The number of the step that was made."""
        following = self.num_steps + 1
        number = None if step is None else as_index(step)
        if number is not None and number >= following:
            return number
        if step is not None and self._watch is not None:
            expected = f"`step` as a whole number above the last, {self.num_steps}"
            remedy = "Call it once after each optimizer.step()"
            error = input_error("Monitor.step", expected, in_words(step), remedy)
            self._watch.output.refuse_once(following, "number of the step", error, f"It is counted as {following}")
        return following

    def is_due(self, step: int | None = None) -> bool:
        """Whether ``step`` will measure at that step, the next if None, as far as the schedule says."""
        step = self.num_steps + 1 if step is None else step
        return self._watch is not None and self.schedule.is_due(step, self.num_steps)

    def measure(self, x: Batch, y: Batch, loss: Any = None) -> None:
        """Measure now with every probe, whatever schedule and budget say: before the first step, for example."""
        with self._harmless("measure"):
            if self._watch is not None:
                x, y = as_tensors(self.model, x), as_tensors(self.model, y)
                self._watch.asked_for(self.num_steps, x, y, loss)
        self._hand_on()

    def log(self, probe: str, values: dict[str, Any]) -> None:
        """Append numbers of the loop's own (an epoch's test accuracy, say) at the current step.

        Numbers may be Python's, tensors or arrays. What a record cannot hold is left out and said once: other objects,
        lists deeper than a list of lists, arrays of more than 65,536 numbers.
        """
        with self._harmless("log"):
            if self._watch is not None:
                self._watch.log(self.num_steps, probe, values)

    def log_error(self, probe: str, error: BaseException, *, step: int | None = None) -> None:
        """Append that something could not be measured, at the current step or, in place of ``step``, at the next."""
        with self._harmless("log_error"):
            self.num_steps = self.num_steps if step is None else self._counted(step)
            if self._watch is not None:
                self._watch.output.error(self.num_steps, probe, error)

    def close(self, error: BaseException | None = None) -> None:
        """Measure the end, unless the last step was measured, and finish the record; further calls do nothing.

        The files stay readable whether or not this is called. ``with`` calls it, also where the loop leaves by an
        exception.

        Args:
            error: what ended the training, if it was no end of its own.
        """
        if self._watch is None:
            return
        try:
            with self._harmless("close"):
                self._watch.finish(self.num_steps, error)
            with self._harmless("on_finding"):  # there is nothing left to stop
                self._hand_on()
        finally:
            self._watch.output.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)
