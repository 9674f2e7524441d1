"""Some of the weights before a step: enough to tell how far the step moved them, in little memory."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pullback._rng import make_generator
from pullback.functional import ModelView

MOST_ENTRIES = 2**16  # of one parameter; larger ones are sampled
CHANCE = 5.0  # standard errors: 3e-7 of directions


@dataclass(frozen=True)
class Snapshot:
    """Entries of every trainable parameter at one step.

    Attributes:
        places: parameter name -> places of the entries in the flattened parameter, or None for all of them.
        values: parameter name -> a copy of the entries.
        owners: parameter name -> the parameter itself, as long as someone else keeps it, and its number of entries.
    """

    places: dict[str, Tensor | None]
    values: dict[str, Tensor]
    owners: dict[str, tuple[weakref.ref[Tensor], int]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Copy at most ``MOST_ENTRIES`` entries of each parameter, drawn by a generator of their own.

        Whatever the optimiser, whatever comes between its step and the measurement. A copy of all weights would add a
        quarter to the memory of training with Adam.
        """
        places: dict[str, Tensor | None] = {}
        values: dict[str, Tensor] = {}
        owners: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        for name, p in ModelView.of(model, where="Monitor").parameters.items():
            size = p.numel()
            drawn = None
            if size > MOST_ENTRIES:
                drawn = torch.randint(size, (MOST_ENTRIES,), generator=make_generator(size), device="cpu").to(p.device)
            places[name] = drawn
            values[name] = _entries(p, drawn).clone()
            owners[name] = weakref.ref(p), size
        return cls(places, values, owners)

    def still_there(self, model: nn.Module) -> Snapshot:
        """Without the parameters that others have taken the place of, or that were resized: no step moved those."""
        now = ModelView.of(model, where="Monitor").parameters
        same = {name: owner for name, owner in self.owners.items() if name in now and _is(now[name], owner)}
        return Snapshot({n: self.places[n] for n in same}, {n: self.values[n] for n in same}, same)

    def ratios(self, model: nn.Module) -> dict[str, tuple[float, float]]:
        """|w - w0| / |w0| of every layer since, and its standard error, 0 where all entries are known.

        Layers whose weights were all zero are left out: they have no relative change.
        """
        view = ModelView.of(model, where="Monitor")
        ratios_of = {}
        for layer, names in view.layers.items():
            parts = [self._squares(name, view.parameters[name]) for name in names if name in self.values]
            moved = sum(float(change.sum()) for change, _, _ in parts)
            size = sum(float(value.sum()) for _, value, _ in parts)
            if size > 0:
                square = moved / size
                variance = sum(_variance(*part, square) for part in parts if part[2]) / size**2
                ratio = math.sqrt(square)
                ratios_of[layer] = ratio, math.sqrt(variance) / (2 * ratio) if ratio > 0 else 0.0
        return ratios_of

    def distance(self, model: nn.Module) -> tuple[float, float]:
        """|w - w0| over all parameters, and its standard error, 0 where all entries are known."""
        view = ModelView.of(model, where="Monitor")
        parts = [self._squares(name, view.parameters[name]) for name in self.values]
        moved = math.sqrt(sum(float(change.sum()) for change, _, _ in parts))
        variance = sum(_variance(*part, 0.0) for part in parts if part[2])
        return moved, math.sqrt(variance) / (2 * moved) if moved > 0 else 0.0

    def shrinkage(self, model: nn.Module) -> tuple[float, float]:
        """|w0| of all weights, and the cosine between w - w0 and -w0; 0 where nothing moved."""
        view = ModelView.of(model, where="Monitor")
        size = moved = along = 0.0
        for name, kept in self.values.items():
            p, before = view.parameters[name], kept.double()
            scale, change = p.numel() / max(1, len(before)), _entries(p, self.places[name]).double() - before
            size += scale * float(before.dot(before))
            moved += scale * float(change.dot(change))
            along -= scale * float(change.dot(before))
        return math.sqrt(size), along / math.sqrt(size * moved) if size * moved > 0 else 0.0

    def went_down(self, model: nn.Module) -> bool:
        """Whether the weights went against their gradient since, by more than a direction drawn at random does.

        By ``CHANCE`` standard errors, 1 / sqrt(entries) of a cosine. False where there is no gradient any more.
        """
        parameters = ModelView.of(model, where="Monitor").parameters
        along = moved = size = 0.0
        entries = 0
        for name, before in self.values.items():
            p, places = parameters[name], self.places[name]
            if p.grad is not None and not p.grad.is_sparse:
                gradient = _entries(p.grad, places).double()
                change = _entries(p, places).double() - before.double()
                along -= float((gradient * change).sum())
                moved, size = moved + float(change.square().sum()), size + float(gradient.square().sum())
                entries += len(change)
        return moved * size > 0 and along > CHANCE * math.sqrt(moved * size / entries)

    def _squares(self, name: str, p: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Squared change and squared value of the known entries, scaled so that they sum to all; whether sampled."""
        places, before = self.places[name], self.values[name].double()
        scale = p.numel() / len(before)
        moved = (_entries(p, places).double() - before).square()
        return scale * moved, scale * before.square(), places is not None


def _is(p: Tensor, owner: tuple[weakref.ref[Tensor], int]) -> bool:
    return owner[0]() is p and owner[1] == p.numel()


def _entries(p: Tensor, places: Tensor | None) -> Tensor:
    flat = p.detach().reshape(-1)
    return flat if places is None else flat[places]


def _variance(moved: Tensor, size: Tensor, sampled: bool, square: float) -> float:
    """Variance of sum moved - square sum size over the draw of the entries."""
    return float((moved - square * size).var()) * len(moved) if sampled else 0.0
