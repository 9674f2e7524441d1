"""``TransformersCallback``: the monitor in the Trainer of the transformers package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pullback._checks import input_error
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.functional.unwrap import refuse_sharded
from pullback.monitor.adapters import base_class, check_asked, steps_behind
from pullback.monitor.adapters.metrics import PROBE, held_out
from pullback.monitor.own_loss import OwnLoss
from pullback.monitor.session import Monitor
from pullback.runs import load_run

_Callback: Any = base_class(("transformers",), "TrainerCallback", "hf")


class TransformersCallback(_Callback):  # type: ignore[misc]  # a class of a package that mypy does not read
    """Watches a model that a Trainer trains, as ``Monitor`` watches a loop.

    Steps are the Trainer's ``global_step``; accumulated batches count once, and the last of them is measured. On
    several processes the first measures. A training resumed from a checkpoint goes on in the same record.

    Metrics of an evaluation are recorded as ``test``: ``eval_loss`` and ``eval_accuracy`` as ``loss`` and ``accuracy``,
    others under their own names.

    Callbacks are not shown batches. The last one is kept by a forward hook on the model, which stays until training
    ends; after an exception in training, which the Trainer tells no callback, until the callback is used again.

    Args:
        run_dir: folder of the record.
        loss_fn: as for ``Monitor``: a function of the model's outputs and the labels. None takes the loss the model
            computes, if it is the cross-entropy (of classes, tokens or next tokens), the squared error or the binary
            cross-entropy of ``logits`` and ``labels``: this is checked on single samples, and no measurement is made
            if it is not. A sample's loss is the mean over its own labels.
        options: further arguments of ``Monitor``: ``every``, ``probes``, ``max_samples``, ``budget``, ``about``,
            ``forward``, ``on_finding``, ``on_exists``: "refuse" refuses a taken folder at once, "resume" goes on where
            the checkpoint was made and, from step 0, leaves behind what the run holds, "number" takes the next free
            name.

    Attributes:
        monitor: during and after training; None before, and on processes that do not measure.

    Raises:
        InputError: transformers is not installed; ``on_exists`` refuses the folder; when training starts, what
            ``Monitor`` raises.
        UnsupportedError: when training starts, of a sharded model.

    Example:
        >>> callback = TransformersCallback("runs/mine", every=100)
        >>> callback.monitor is None  # until Trainer(..., callbacks=[callback]).train()
        True
    """

    def __init__(self, run_dir: str | Path, loss_fn: LossFunction | None = None, **options: Any) -> None:
        check_asked(run_dir, options, "TransformersCallback")
        self.run_dir, self.options = run_dir, options
        self.loss_fn: LossFunction = OwnLoss() if loss_fn is None else loss_fn
        self.monitor: Monitor | None = None
        self._last = LastBatch()
        self._hook: RemovableHandle | None = None

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What ``pullback.diagnose`` says of the run so far, as ``Run.findings``."""
        return load_run(self.run_dir if self.monitor is None else self.monitor.run_dir).findings

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Open the record, before the first step."""
        model = known["model"]
        self._close()  # of a training that an exception ended
        refuse_sharded(model, "TransformersCallback")  # on every process, or one would leave the others waiting
        if not state.is_world_process_zero:
            return
        self.monitor = Monitor(
            model,
            self.loss_fn,
            self.run_dir,
            optimizer=known.get("optimizer"),
            resume=steps_behind(state.global_step, self.options),
            **self.options,
        )
        self._hook = model.register_forward_hook(self._last, with_kwargs=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Measure, if a measurement is due."""
        inputs, loss = self._last.inputs or {}, self._last.loss
        self._last.inputs = self._last.loss = None
        if self.monitor is None:
            return
        try:
            x, y = split(known["model"], inputs, args.label_names or ["labels"])
            own = self.loss_fn
            if isinstance(own, OwnLoss) and own.form is None and self.monitor.is_due(state.global_step):
                own.settle(known["model"], _given(inputs), y)
        except Exception as error:  # what cannot be measured is recorded, and training goes on
            if self.monitor.is_due(state.global_step):
                self.monitor.log_error("monitor", error, step=state.global_step)
            else:
                self.monitor.step(None, None, loss=loss, step=state.global_step)
        else:
            whole = args.gradient_accumulation_steps == 1  # else it is the loss of a part of the step
            self.monitor.step(x, y, loss=loss if whole else None, step=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Record what was measured on held-out data, at the step it was measured at."""
        if self.monitor is not None and self._hook is not None:  # in training
            self.monitor.log(PROBE, held_out(known.get("metrics") or {}))

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Finish the record."""
        self._close()

    def _close(self) -> None:
        self._last.inputs = self._last.loss = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self.monitor is not None:
            self.monitor.close()


class LastBatch:
    """A forward hook that keeps what the model was last called with in training, and the loss it returned.

    It knows nothing else, so that models can be copied and saved with it, and it always does the same, so that compiled
    code is not compiled again.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Any] | None = None
        self.loss: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """Called after every forward pass."""
        if module.training:
            self.inputs = kwargs
            self.loss = outputs.get("loss") if isinstance(outputs, Mapping) else None


def split(model: nn.Module, inputs: dict[str, Any], names: Sequence[str]) -> tuple[Batch, Batch]:
    """What the model is called with, and the labels among it; encoder-decoders need them to make the decoder's inputs.

    Raises:
        InputError: the Trainer handed the model no labels.
    """
    missing = [name for name in names if not isinstance(inputs.get(name), Tensor)]
    if missing:
        raise input_error(
            "TransformersCallback",
            f"the labels {', '.join(f'`{name}`' for name in names)} among the model's inputs",
            f"only {', '.join(inputs) or 'none'}",
            "Leave label smoothing and compute_loss_func out, or name the labels in TrainingArguments(label_names=…)",
        )
    labels = {name: inputs[name] for name in names}
    y = labels[names[0]] if len(names) == 1 else labels
    keep = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return {name: value for name, value in _given(inputs).items() if keep or name not in labels}, y


def _given(inputs: dict[str, Any]) -> dict[str, Any]:
    """Without what belongs to the batch as a whole."""
    return {name: value for name, value in inputs.items() if name != "num_items_in_batch"}
