"""``Monitor``: around a user's own loop, measures at its schedule, and appends to a run record."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import check_names, check_option, input_error
from pullback._version import __version__
from pullback.functional import LossFunction, ModelView, num_samples, take, undisturbed
from pullback.functional.batch import Batch
from pullback.kernels import KernelSeries
from pullback.monitor.probes import PRESETS, PROBES, Observation, Probe
from pullback.monitor.schedule import Schedule, is_sparse_turn
from pullback.runs import RunWriter


class Monitor:
    """Measures a model while it trains, and leaves no trace in it.

    Weights, gradients, train and eval modes, buffers, hooks and the global random state are after a measurement
    what they were before it. Probes run in eval mode on the first ``max_samples`` samples of the batch at hand. A
    probe that fails is recorded and never stops training; an exception of the user's loop passes through.

    Args:
        model: the model being trained.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        run_dir: folder of the record; must be new or empty.
        optimizer: for the learning rate; None leaves out what needs it.
        every: measure after every so many steps.
        probes: "light", "standard" or "full", or names out of ``monitor.PROBES``.
        max_samples: N, samples a measurement looks at.
        budget: share of the wall time that measuring may take: after the first few, measurements that are due are
            left out until enough unwatched time has passed; ``num_skipped`` counts them. None measures whenever due.
        about: anything else to store with the run (data, options), JSON-serialisable.

    Raises:
        InputError: the folder holds something, an unknown preset or probe, ``every`` or ``max_samples`` below 1.

    Cost: a measurement of the standard preset takes about as long as two to four training steps; the record
        ``cost`` says how long each took, ``Monitor.seconds`` the sum.

    Example:
        >>> import tempfile
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
        loss_fn: LossFunction,
        run_dir: str | Path,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 50,
        probes: str | Sequence[str] = "standard",
        max_samples: int = 256,
        budget: float | None = 0.015,
        about: dict[str, Any] | None = None,
    ) -> None:
        where = "Monitor"
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self.schedule = Schedule(every, budget)
        if max_samples < 2:
            raise input_error(where, "`max_samples` of at least 2", repr(max_samples), "Pass more samples")
        self.max_samples = max_samples
        self.probes = _chosen(probes, where)
        self.num_steps = 0
        self.num_measurements = 0
        self.num_skipped = 0
        self.seconds = 0.0
        self._last_cost = {True: 0.0, False: 0.0}  # of a measurement with and without the dearer parts
        self._last_end = dict.fromkeys((True, False), time.perf_counter())
        self._dear_wanted = False
        self._warned = False
        self._kernels = KernelSeries(model, loss_fn)
        self._writer = RunWriter(run_dir, self._describe(probes) | (about or {}))

    def step(self, x: Batch, y: Batch, loss: Tensor | float | None = None) -> None:
        """Count one training step, after ``optimizer.step()``, and measure if the schedule says so.

        Args:
            x: the batch's inputs, (B, ...).
            y: its targets, (B, ...).
            loss: the loss the loop computed, recorded beside the measured one.
        """
        self.num_steps += 1
        if not self.schedule.is_due(self.num_steps):
            return
        wanted = self._dear_wanted or is_sparse_turn(self.num_measurements + 1)
        if self._can_afford(dear=False):
            dear = wanted and self._can_afford(dear=True)
            self._dear_wanted = wanted and not dear
            self._timed_measurement(x, y, loss, dear=dear)
        else:
            self.num_skipped += 1

    def _can_afford(self, *, dear: bool) -> bool:
        unwatched = time.perf_counter() - self._last_end[dear]
        return self.schedule.is_affordable(self.num_measurements, self._last_cost[dear], unwatched)

    def measure(self, x: Batch, y: Batch, loss: Tensor | float | None = None) -> None:
        """Measure now with every probe, whatever schedule and budget say: at the end of training, for example."""
        self._timed_measurement(x, y, loss, dear=True)

    def _timed_measurement(self, x: Batch, y: Batch, loss: Tensor | float | None, *, dear: bool) -> None:
        start = time.perf_counter()
        try:
            self._measure(x, y, loss, dear=dear)
        finally:
            taken = time.perf_counter() - start
            self.seconds += taken
            self._last_cost[dear] = taken
            self._last_end |= {False: start + taken} | ({True: start + taken} if dear else {})
        self._record(lambda: self._writer.append(self.num_steps, "cost", {"seconds": taken}))

    def log(self, probe: str, values: dict[str, Any]) -> None:
        """Append numbers of the loop's own (an epoch's test accuracy, say) at the current step."""
        start = time.perf_counter()
        self._record(lambda: self._writer.append(self.num_steps, probe, values))
        self.seconds += time.perf_counter() - start

    def _measure(self, x: Batch, y: Batch, loss: Tensor | float | None, *, dear: bool) -> None:
        self.num_measurements += 1
        try:
            count = min(self.max_samples, num_samples(x))
            x, y = take(x, slice(0, count)), take(y, slice(0, count))
            seen = Observation(self.model, self.loss_fn, x, y, self.optimizer, _number(loss), self._kernels)
            with undisturbed(self.model, training=False):
                for probe in self.probes:
                    if dear or not probe.sparse:
                        self._run(probe, seen, dear=dear)
        except Exception as error:  # whatever happens here is recorded; training goes on
            failure = error
            self._record(lambda: self._writer.append_error(self.num_steps, "monitor", failure))

    def _run(self, probe: Probe, seen: Observation, *, dear: bool) -> None:
        try:
            found = probe(seen, dear=dear)
        except Exception as error:  # as above
            failure = error
            self._record(lambda: self._writer.append_error(self.num_steps, probe.name, failure))
            return
        if found.values:
            self._record(lambda: self._writer.append(self.num_steps, probe.name, found.values))
        for name, array in found.arrays.items():
            stored = name, array
            self._record(lambda s=stored: self._writer.write_array(self.num_steps, probe.name, *s))

    def _record(self, write: Any) -> None:
        """Write, and if the disk refuses say so once and train on."""
        try:
            write()
        except Exception as error:  # a full disk must not end a training run
            if not self._warned:
                self._warned = True
                warnings.warn(f"Monitor: a record was lost ({error}); training goes on", stacklevel=3)

    def _describe(self, probes: str | Sequence[str]) -> dict[str, Any]:
        view = ModelView.of(self.model, where="Monitor")
        described: dict[str, Any] = {
            "pullback": __version__,
            "model": {
                "class": type(self.model).__name__,
                "num_params": view.num_params,
                "layers": list(view.layers),
                "frozen": list(view.frozen),
            },
            "loss": getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__),
            "settings": {
                "every": self.schedule.every,
                "probes": probes if isinstance(probes, str) else list(probes),
                "max_samples": self.max_samples,
                "budget": self.schedule.budget,
            },
        }
        if self.optimizer is not None:
            rate = float(self.optimizer.param_groups[0]["lr"])
            described["optimizer"] = {"class": type(self.optimizer).__name__, "learning_rate": rate}
        return described

    def close(self) -> None:
        """Finish the record; the files stay readable whether or not this is called."""
        self._writer.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _number(loss: Tensor | float | None) -> float | None:
    return float(loss.detach()) if isinstance(loss, Tensor) else loss


def _chosen(probes: str | Sequence[str], where: str) -> list[Probe]:
    if isinstance(probes, str):
        check_option(where, "probes", probes, tuple(PRESETS))
        probes = PRESETS[probes]
    check_names(where, "probes", probes, tuple(PROBES))
    return [PROBES[name] for name in probes]
