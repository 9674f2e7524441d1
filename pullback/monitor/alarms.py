"""A loss that is not finite, or leaps: recorded at once, with what can be seen of the reason, and said once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pullback.functional import num_samples, undisturbed
from pullback.functional.batch import Batch, tensors
from pullback.functional.model_view import evaluate
from pullback.functional.target_checks import logits_of
from pullback.functional.unwrap import unwrap
from pullback.monitor.output import Output
from pullback.monitor.probes.work import FORWARD

MOST = 1000  # samples that are named
LEAST_SEEN = 8  # samples before a loss can leap: that of one alone tells little of the next
NOISE = 8  # samples whose mean scatters as far again as the losses themselves


class Alarms:
    """Looks at every loss that the loop hands over.

    Of losses that are not finite the 1st, 2nd, 4th, 8th and so on is recorded, and of leaps likewise: a run that goes
    on for thousands of steps after its end makes no thousands of records.

    Args:
        model: the model being trained.
        output: of the run.

    Attributes:
        num_recorded: so far.
    """

    def __init__(self, model: nn.Module, output: Output) -> None:
        self.model, self.output = model, output
        self.batch: tuple[Batch, Batch] | None = None  # at hand
        self.step = self.num_recorded = 0
        self._counts = {"not_finite": 0, "leap": 0}
        self._largest, self._least = -math.inf, math.inf
        self._seen = 0  # samples

    def look(self, step: int, loss: float, samples: int, passes: float = math.inf) -> float:
        """Record what is wrong with a loss, if anything is.

        Args:
            step: at which it was the loss.
            loss: as the loop handed it over.
            samples: of a batch.
            passes: that may be made to see which samples' outputs are not finite.

        Returns:
            The passes that were made.
        """
        if not math.isfinite(loss):
            outputs = FORWARD * samples <= passes
            return FORWARD * samples if self._turn("not_finite") and self._not_finite(step, loss, outputs) else 0.0
        before, spread = self._largest, self._largest - self._least
        leaps = self._seen >= LEAST_SEEN and loss - before > (1 + NOISE / samples) * max(abs(before), spread)
        self._largest, self._least = max(before, loss), min(self._least, loss)
        self._seen += samples
        if leaps and self._turn("leap"):
            self._leap(step, loss, before)
        return 0.0

    def _turn(self, kind: str) -> bool:
        self._counts[kind] += 1
        turn = self._counts[kind] & (self._counts[kind] - 1) == 0
        self.num_recorded += turn
        return turn

    def _leap(self, step: int, loss: float, before: float) -> None:
        self.output.values(step, "leap", {"loss": loss, "before": before}, forward=False)
        self.output.say_once("leap", f"the loss of step {step} is {loss:.4g}, at most {before:.4g} before")

    def _not_finite(self, step: int, loss: float, outputs: bool) -> bool:
        """Record what is not finite; whether outputs were looked at."""
        named = [(name, p) for name, p in unwrap(self.model).named_parameters()]
        found: dict[str, Any] = {
            "loss": loss,
            "gradients": [name for name, p in named if p.grad is not None and not _is_finite(p.grad)],
            "weights": [name for name, p in named if not _is_finite(p)],
        }
        x, y = self.batch if self.batch is not None else ((), ())
        found |= {"inputs": bad_samples(x), "targets": bad_samples(y)}
        found |= {"outputs": self._bad_outputs(x)} if outputs else {}
        if step != self.step:  # a number fetched from a device: everything else is of now
            found["looked_at"] = self.step
        self.output.values(step, "not_finite", found, forward=False)
        parts = [f"{len(found[key])} {what}" for key, what in SAID.items() if found.get(key)]
        also = f"; not finite either: {', '.join(parts)}" if parts else ""
        self.output.say_once("not_finite", f"the loss of step {step} is {loss}{also}")
        return outputs

    def _bad_outputs(self, x: Batch) -> list[int]:
        """Samples whose outputs in eval mode are not finite; none where the model does not take the batch."""
        try:
            with undisturbed(self.model, training=False), torch.no_grad():
                return bad_samples(logits_of(evaluate(unwrap(self.model), x)), num_samples(x))
        except Exception:
            return []


SAID = {
    "inputs": "samples of the inputs",
    "targets": "of the targets",
    "outputs": "of the outputs",
    "gradients": "parameters' gradients",
    "weights": "parameters",
}


def _is_finite(t: Tensor) -> bool:
    t = t.detach()
    return bool((t.coalesce().values() if t.is_sparse else t).isfinite().all())


def bad_samples(batch: Batch, count: int | None = None) -> list[int]:
    """Samples (at most ``MOST``) that hold a number which is not finite.

    Args:
        batch: tensors with samples along their first axis; others are passed over.
        count: samples there are; leaves of another length hold none of them.
    """
    places: set[int] = set()
    try:
        leaves: Iterable[Tensor] = tensors(batch)
        for leaf in leaves:
            floating = leaf.is_floating_point() or leaf.is_complex()
            if floating and leaf.dim() and (count is None or len(leaf) == count):
                bad = ~leaf.detach().isfinite()
                places.update(bad.reshape(len(leaf), -1).any(1).nonzero().flatten().tolist())
    except Exception:  # no batch of tensors: whoever measures it says so
        return []
    return sorted(places)[:MOST]
