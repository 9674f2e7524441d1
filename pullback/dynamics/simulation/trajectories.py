"""What a simulation returns, and how it goes into a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback._results import Shown


class Writer(Protocol):
    """What takes the records: a ``pullback.runs.RunWriter``."""

    def append(self, step: int, probe: str, values: dict[str, Any]) -> None:
        """Append the numbers one probe measured at one step."""


@dataclass(frozen=True)
class Trajectories(Shown):
    """Where an optimizer went, from the start on.

    Axes in front: of seeds, if there are several, then those of the starts.

    Attributes:
        x: (..., steps + 1, d).
        loss: without noise, at x, (..., steps + 1).
        gradient_norm: of the gradient without noise and clipping, at x, (..., steps + 1).
        evaluations: of loss and gradient by one run, on the way; LBFGS makes several a step.
        landscape: its name.
        optimizer: its kind and settings.
    """

    x: Tensor
    loss: Tensor
    gradient_norm: Tensor
    evaluations: Tensor
    landscape: str
    optimizer: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """Steps made."""
        return self.x.shape[-2] - 1

    def steps_to(self, target: float) -> Tensor:
        """First step at which the loss is below ``target``, (...); inf where it never is."""
        below = self.loss < target
        first = below.to(torch.uint8).argmax(-1).double()
        return torch.where(below.any(-1), first, torch.inf)

    def write(self, writer: Writer, run: int = 0) -> None:
        """Append one trajectory to a run folder: probes "loss" and "position", at every step.

        Args:
            writer: a ``pullback.runs.RunWriter``, open.
            run: which one, counted along the axes in front.

        Raises:
            InputError: there is no such run.

        Example:
            >>> import tempfile, pullback as pb
            >>> from pullback import dynamics
            >>> from pullback.runs import RunWriter
            >>> found = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=0.01), "quadratic", None, 3)
            >>> folder = tempfile.mkdtemp() + "/run"
            >>> with RunWriter(folder, found.meta) as writer:
            ...     found.write(writer)
            >>> pb.load_run(folder).series("loss", "loss")[0]
            [0, 1, 2, 3]
        """
        x, loss, norm = self.x.flatten(0, -3) if self.x.dim() > 2 else self.x[None], self.loss, self.gradient_norm
        loss, norm = loss.reshape(len(x), -1), norm.reshape(len(x), -1)
        if not 0 <= run < len(x):
            raise input_error("Trajectories.write", f"`run` from 0 to {len(x) - 1}", repr(run), "Pass one of these")
        for step in range(self.steps + 1):
            writer.append(step, "loss", {"loss": float(loss[run, step]), "gradient_norm": float(norm[run, step])})
            writer.append(step, "position", {"x": x[run, step].tolist()})

    @property
    def meta(self) -> dict[str, Any]:
        """What a run folder says about the run."""
        return {"landscape": self.landscape, "optimizer": dict(self.optimizer), "steps": self.steps}
