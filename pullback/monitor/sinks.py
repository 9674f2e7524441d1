"""Where scalars go besides the record: TensorBoard, Weights & Biases, or any callable.

A sink is called once a measurement, as ``sink(step, scalars)`` with scalars named as the columns of ``Run.table``. It
gets the caller's own writer or run, so nothing is imported here, and whoever opened it closes it.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

from pullback.runs.schema import columns

Sink = Callable[[int, dict[str, float]], object]

GROUP = "pullback/"  # both dashboards make a section of what stands before the slash


def to_tensorboard(writer: Any) -> Sink:
    """Send scalars to TensorBoard, under ``pullback/…`` at the step of the training.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, name, value, step): print(name, value, step)
        ...     def flush(self): pass
        >>> to_tensorboard(Writer())(50, {"kernel.M1": 0.5})
        pullback/kernel.M1 0.5 50
    """

    def send(step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(GROUP + name, value, step)
        writer.flush()  # a killed process then loses nothing

    return send


def to_wandb(run: Any) -> Sink:
    """Send scalars to Weights & Biases, drawn over a step of their own, ``pullback/step``.

    The run's own step counts calls of ``log``, and refuses numbers below it; it moves on by one a measurement.

    Args:
        run: what ``wandb.init`` returned.

    Example:
        >>> class Run:
        ...     def define_metric(self, name, step_metric=None): pass
        ...     def log(self, values): print(values)
        >>> to_wandb(Run())(50, {"kernel.M1": 0.5})
        {'pullback/step': 50, 'pullback/kernel.M1': 0.5}
    """
    own_step = f"{GROUP}step"
    run.define_metric(own_step)
    run.define_metric(f"{GROUP}*", step_metric=own_step)

    def send(step: int, scalars: dict[str, float]) -> None:
        run.log({own_step: step} | {GROUP + name: value for name, value in scalars.items()})

    return send


def scalars_of(probe: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers among what a probe measured; texts, lists and what is missing are left out."""
    return {name: float(cell) for name, cell in columns(probe, values) if isinstance(cell, numbers.Real)}
