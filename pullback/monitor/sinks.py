"""Where scalars go besides the record: TensorBoard, Weights & Biases, or any callable.

A sink is called once a measurement, as ``sink(step, scalars)`` with scalars named as the columns of ``Run.table``. One
with a method ``tell(step, verdict, findings, new)`` is told what the run is found to be, and again when that changes;
one with ``end(run)`` is given the run at its end. It gets the caller's own writer or run, so nothing is imported here,
and whoever opened it closes it.
"""

from __future__ import annotations

import numbers
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pullback._hooks import pages
from pullback.runs import Run
from pullback.runs.schema import columns

Sink = Callable[[int, dict[str, float]], object]

GROUP = "pullback/"  # both dashboards make a section of what stands before the slash
LONGEST_TITLE = 63  # of an alert of wandb


class TensorBoard:
    """Scalars, findings and the verdict in a ``SummaryWriter``; see ``to_tensorboard``."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Send the scalars of a measurement."""
        for name, value in scalars.items():
            self.writer.add_scalar(GROUP + name, value, step)
        self.writer.flush()  # a killed process then loses nothing

    def tell(self, step: int, verdict: str, findings: list[Any], new: list[Any]) -> None:
        """Show what the run is found to be, as text."""
        self.writer.add_text(f"{GROUP}verdict", verdict, step)
        listed = "\n".join(f"- {finding}" for finding in findings)
        self.writer.add_text(f"{GROUP}findings", listed or "none", step)
        self.writer.flush()


class WeightsAndBiases:
    """Scalars, findings, the verdict and the page in a run of wandb; see ``to_wandb``."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Send the scalars of a measurement."""
        self.run.log({f"{GROUP}step": step} | {GROUP + name: value for name, value in scalars.items()})

    def tell(self, step: int, verdict: str, findings: list[Any], new: list[Any]) -> None:
        """Put the verdict and the findings into the run's summary, and alert of what is new."""
        self.run.summary[f"{GROUP}verdict"] = verdict
        self.run.summary[f"{GROUP}findings"] = [str(finding) for finding in findings]
        for finding in new:
            level = "ERROR" if finding.severity == "critical" else "WARN"
            self.run.alert(title=f"{finding.name}, step {step}"[:LONGEST_TITLE], text=str(finding), level=level)

    def end(self, run: Run) -> None:
        """Keep the page of the run as an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            for write_page in pages:
                page = write_page(run, Path(folder) / "report.html")
                self.run.log_artifact(str(page), type="report")  # takes a copy


def to_tensorboard(writer: Any) -> Sink:
    """Send scalars to TensorBoard, under ``pullback/…`` at the step of the training.

    The verdict on the run and its findings go there as text, anew when they change.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, name, value, step): print(name, value, step)
        ...     def flush(self): pass
        >>> to_tensorboard(Writer())(50, {"kernel.M1": 0.5})
        pullback/kernel.M1 0.5 50
    """
    return TensorBoard(writer)


def to_wandb(run: Any) -> Sink:
    """Send scalars to Weights & Biases, drawn over a step of their own, ``pullback/step``.

    The run's own step counts calls of ``log``, and refuses numbers below it; it moves on by one a measurement. The
    verdict on the run and its findings stand in its summary, each new finding above "info" is an alert, and at the end
    the page of the run is kept as an artifact of the type "report".

    Args:
        run: what ``wandb.init`` returned.

    Example:
        >>> class Run:
        ...     def define_metric(self, name, step_metric=None): pass
        ...     def log(self, values): print(values)
        >>> to_wandb(Run())(50, {"kernel.M1": 0.5})
        {'pullback/step': 50, 'pullback/kernel.M1': 0.5}
    """
    run.define_metric(f"{GROUP}step")
    run.define_metric(f"{GROUP}*", step_metric=f"{GROUP}step")
    return WeightsAndBiases(run)


def scalars_of(probe: str, values: dict[str, Any]) -> dict[str, float]:
    """The numbers among what a probe measured; texts, lists and what is missing are left out."""
    return {name: float(cell) for name, cell in columns(probe, values) if isinstance(cell, numbers.Real)}
