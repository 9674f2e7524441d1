"""``LightningCallback``: the monitor in a trainer of Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.functional.unwrap import refuse_sharded
from pullback.monitor.adapters import base_class, check_asked, steps_behind
from pullback.monitor.adapters.metrics import PROBE, held_out
from pullback.monitor.session import Monitor
from pullback.monitor.sinks import GROUP, TensorBoard, WeightsAndBiases
from pullback.runs import Run, load_run

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # one code under two names; a trainer knows its own classes
if sys.modules.get("pytorch_lightning") and "lightning.pytorch" not in sys.modules:
    _PACKAGES = _PACKAGES[::-1]
_Callback: Any = base_class(_PACKAGES, "Callback", "lightning")


def pair(batch: Any) -> tuple[Batch, Batch]:
    """Inputs and targets of a batch that is a tuple or a list of the two."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
    raise input_error("LightningCallback", "a batch (x, y)", got, "Pass split=, a function from a batch to (x, y)")


class LightningCallback(_Callback):  # type: ignore[misc]  # a class of a package that mypy does not read
    """Watches a module that Lightning trains, as ``Monitor`` watches a loop.

    Steps are the trainer's ``global_step``; accumulated batches count once, at the step of the optimizer. Measurements
    run in the trainer's precision. On several processes the first measures. A run goes on where the checkpoint passed
    to ``trainer.fit(ckpt_path=...)`` was made. What a validation logs is recorded as ``test``: ``val_loss`` and
    ``val_acc`` as ``loss`` and ``accuracy``, others under their own names. Scalars go on to the trainer's loggers,
    findings and the verdict to those of TensorBoard and Weights & Biases.

    Args:
        run_dir: folder of the record.
        loss_fn: as for ``Monitor``: of the module's outputs and the targets.
        split: from a batch to (x, y); x is handed to the module's ``forward``.
        module: name of the submodule to watch, as ``get_submodule`` takes it, where the module itself has no
            ``forward`` that goes from x to what the loss takes.
        to_loggers: whether the trainer's loggers get the scalars of every measurement.
        options: further arguments of ``Monitor``: ``every``, ``probes``, ``max_samples``, ``budget``, ``about``,
            ``forward``, ``on_finding``, ``on_exists``: "refuse" refuses a taken folder at once, "resume" goes on where
            the checkpoint was made and, from step 0, leaves behind what the run holds, "number" takes the next free
            name.

    Attributes:
        monitor: during and after training; None before, and on processes that do not measure.

    Raises:
        InputError: Lightning is not installed; ``on_exists`` refuses the folder; when training starts, what ``Monitor``
            raises.
        UnsupportedError: when training starts, of a sharded module.

    Example:
        >>> callback = LightningCallback("runs/mine", torch.nn.CrossEntropyLoss(), every=100)
        >>> callback.monitor is None  # until Trainer(callbacks=[callback]).fit(module)
        True
    """

    def __init__(
        self,
        run_dir: str | Path,
        loss_fn: LossFunction,
        *,
        split: Callable[[Any], tuple[Batch, Batch]] = pair,
        module: str = "",
        to_loggers: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        check_asked(run_dir, options, "LightningCallback")
        self.run_dir, self.loss_fn, self.split, self.to_loggers = run_dir, loss_fn, split, to_loggers
        self.module, self.options = module, options
        self.monitor: Monitor | None = None
        self._logged: dict[str, Tensor] = {}
        self._validated: set[str] = set()

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What ``pullback.diagnose`` says of the run so far, as ``Run.findings``."""
        return load_run(self.run_dir if self.monitor is None else self.monitor.run_dir).findings

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the record, before the first step."""
        self._close()
        refuse_sharded(pl_module, "LightningCallback")  # on every process, or one would leave the others waiting
        if not trainer.is_global_zero:
            return
        optimizers: Sequence[torch.optim.Optimizer] = trainer.optimizers
        sinks = [*self.options.get("forward", ()), *([_ToLoggers(trainer.loggers)] if self.to_loggers else [])]
        self.monitor = Monitor(
            pl_module.get_submodule(self.module),
            self.loss_fn,
            self.run_dir,
            optimizer=optimizers,
            resume=steps_behind(trainer.global_step, self.options),
            **(self.options | {"forward": sinks}),
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a step, if the optimizer made one, and measure if it is due."""
        monitor = self.monitor
        if monitor is None or trainer.global_step == monitor.num_steps:
            return
        try:
            x, y = self.split(batch)
        except Exception as error:  # what cannot be measured is recorded, and training goes on
            monitor.log_error("monitor", error, step=trainer.global_step)
            return
        with trainer.precision_plugin.forward_context():
            monitor.step(x, y, loss=_loss_of(outputs, trainer, pl_module), step=trainer.global_step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep what training has logged so far: a trainer shows it among the metrics of a validation."""
        self._logged = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the metrics that the validation logged, at the step it was made at."""
        before, now = self._logged, dict(trainer.callback_metrics)
        self._validated |= {name for name in now if name not in before or not _same(now[name], before[name])}
        metrics = {name: value for name, value in now.items() if name in self._validated}
        if self.monitor is not None and trainer.state.fn == "fit" and trainer.validating and metrics:
            self.monitor.log(PROBE, held_out(metrics))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the end, in the trainer's precision, and finish the record."""
        with trainer.precision_plugin.forward_context():
            self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Measure the end of a training that leaves early, and finish the record."""
        with trainer.precision_plugin.forward_context():
            self._close(exception)

    def _close(self, error: BaseException | None = None) -> None:
        if self.monitor is not None:
            self.monitor.close(error)


def _loss_of(outputs: Any, trainer: Any, pl_module: Any) -> Tensor | None:
    """The loss the training step returned; automatic optimisation divides it by the number of accumulated batches."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if not isinstance(loss, Tensor):
        return None
    return loss * trainer.accumulate_grad_batches if pl_module.automatic_optimization else loss


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


class _ToLoggers:
    """A sink of a trainer's loggers: scalars to each, findings and the page to what takes them of what is behind."""

    def __init__(self, loggers: Sequence[Any]) -> None:
        self.loggers = loggers

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics({GROUP + name: value for name, value in scalars.items()}, step=step)

    def tell(self, *told: Any) -> None:
        for board in self._boards():
            board.tell(*told)

    def end(self, run: Run) -> None:
        for board in self._boards():
            if isinstance(board, WeightsAndBiases):
                board.end(run)

    def _boards(self) -> list[TensorBoard | WeightsAndBiases]:
        behind = [getattr(logger, "experiment", None) for logger in self.loggers]
        writers = [TensorBoard(each) for each in behind if hasattr(each, "add_text")]
        return [*writers, *(WeightsAndBiases(each) for each in behind if hasattr(each, "alert"))]
