"""Every step as the loop shows it: its loss, the learning rates, and the gradient norm where that is next to free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback.diagnostics.step_sizes import Optimizers, number_of, optimizers_of
from pullback.functional.walk import parameters_of
from pullback.monitor.handed import as_number
from pullback.monitor.output import Output
from pullback.runs.schema import in_words

BLOCK = 64  # numbers that wait on a device until they are fetched together
SHARE = 0.01  # of a step's multiplications that a gradient norm may take
AT_START = 8  # steps whose gradient norm is taken whatever it costs
# multiplications that take as long as to read a number, which is in no cache any more, and as to begin with a tensor
READING, CALLING = 32, 300_000
DENSE = 8  # steps so far to one norm, at least: their number then grows with the logarithm


@dataclass(frozen=True)
class Waiting:
    """A number that is still on a device."""

    step: int
    name: str
    value: Tensor


class Steps:
    """Keeps what every step shows, without waiting for a device.

    Numbers on a device are fetched ``BLOCK`` at a time, and when a measurement has made the device wait anyway.

    Args:
        model: the model being trained.
        optimizer: for the learning rates, or None.
        output: of the run.
        arrived: called with step and loss, in order, once the loss is known.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizers | None, output: Output, arrived: Callable[[int, float], None]
    ) -> None:
        self.model, self.optimizer, self.output, self.arrived = model, optimizer, output, arrived
        self._waiting: list[Waiting] = []
        self._norms = 0  # steps at which a gradient norm was looked for
        self._next_norm = 0

    def see(self, step: int, loss: Any, samples: int) -> float | Tensor | None:
        """Take in a step; returns its loss, without its graph, as long as it is no number on the device it is on."""
        found = rates(self.optimizer)
        if loss is not None:
            self._put(step, found, "loss", loss)
        norm = self._gradient_norm(step, samples)
        if norm is not None:
            self._put(step, found, "gradient_norm", norm)
        shown = {name: value for name, value in found.items() if not isinstance(value, Tensor)}
        self._waiting += [Waiting(step, name, v) for name, v in found.items() if isinstance(v, Tensor)]
        if shown:
            self.output.course(step, shown)
        if "loss" in shown:
            self.arrived(step, shown["loss"])
        if len(self._waiting) >= BLOCK:
            self.fetch()
        return found.get("loss")

    def _put(self, step: int, values: dict[str, Any], name: str, value: Any) -> None:
        try:
            if (waits := on_device(value)) is not None:
                values[name] = waits
                return
            values[name] = as_number(value)
            if any(each.name == name for each in self._waiting):  # in their order
                self.fetch()
        except Exception as error:
            self.output.refuse(step, "loss", "batch_loss", in_words(error))

    def fetch(self) -> None:
        """Get what waits on devices, with one wait for each device and dtype."""
        waiting, self._waiting = self._waiting, []
        kinds: dict[Any, list[int]] = {}
        for place, each in enumerate(waiting):
            kinds.setdefault((each.value.device, each.value.dtype), []).append(place)
        numbers: dict[int, float] = {}
        for places in kinds.values():
            numbers |= dict(zip(places, torch.stack([waiting[place].value for place in places]).tolist(), strict=True))
        for place, each in enumerate(waiting):
            self.output.course(each.step, {each.name: float(numbers[place])})
            if each.name == "loss":
                self.arrived(each.step, float(numbers[place]))

    def _gradient_norm(self, step: int, samples: int) -> Tensor | None:
        """Of all gradients that are still there, at steps that keep its work within ``SHARE`` of theirs."""
        if step < self._next_norm:
            return None
        params = [p for p in parameters_of(self.model) if p.requires_grad and p.grad is not None]
        if not params:
            return None
        self._norms += 1
        size = sum(p.numel() for p in params)
        work = READING * size + CALLING * len(params)
        apart = math.ceil(work / (SHARE * 3 * size * max(1, samples)))
        self._next_norm = step + (1 if self._norms < AT_START else min(apart, max(1, step // DENSE)))
        norm = total_norm([p.grad for p in params if p.grad is not None])
        return norm if norm.device.type != "cpu" or float(norm) > 0 else None  # zeroed gradients are not there any more


def on_device(value: Any) -> Tensor | None:
    """A loss that is on a device, as one number there; None for what is at hand."""
    if not isinstance(value, Tensor) or value.device.type in ("cpu", "meta"):
        return None
    if value.is_complex() or not value.numel():
        return None  # refused by whoever makes it a number
    value = value.detach()
    return value.reshape(()).clone() if value.numel() == 1 else value.float().mean()


def rates(optimizer: Optimizers | None) -> dict[str, Any]:
    """Learning rates of the groups that train, by name; those that are no number are left out."""
    if optimizer is None:
        return {}
    groups = [
        group for each in optimizers_of(optimizer) for group in each.param_groups
        if any(p.requires_grad for p in group["params"])
    ]  # fmt: skip
    rates_of: dict[str, Any] = {}
    for place, group in enumerate(groups):
        rate = group.get("lr")
        waits = on_device(rate)
        number = number_of(rate) if waits is None else waits
        if isinstance(number, Tensor) or not math.isnan(number):
            rates_of["learning_rate" + (f".{place}" if place else "")] = number
    return rates_of


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Norm of several tensors together, on the first one's device; in double precision where single overflows."""
    parts = [_entries(g) for g in gradients]
    norm = _norm(parts, None)
    if norm.device.type == "cpu" and not math.isfinite(float(norm)):
        norm = _norm(parts, torch.float64)
    return norm


def _norm(parts: list[Tensor], dtype: torch.dtype | None) -> Tensor:
    dtypes = {part.dtype for part in parts}
    if dtype is None and len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}:
        if all(part.device.type == "cpu" for part in parts):  # as torch does, without looking for groups of a kind
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))
        return torch.nn.utils.get_total_norm(parts)
    dtype = dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)  # half precision overflows
    norms = [torch.linalg.vector_norm(part, dtype=dtype) for part in parts]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _entries(gradient: Tensor) -> Tensor:
    gradient = gradient.detach()
    return gradient.coalesce().values() if gradient.is_sparse else gradient
