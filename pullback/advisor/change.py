"""``Change``: a remedy that a program can carry out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pullback._checks import check_option, input_error
from pullback._results import Shown


@dataclass(frozen=True)
class Change(Shown):
    """One thing to change before the next run.

    Attributes:
        kind: one of ``KINDS``.
        value: of "learning_rate", "batch_size" and "weight_decay" the factor on what is set now (of a schedule, on its
            highest rate, which is then held; 0 takes a weight decay out); of "clip_norm" the largest norm of the
            gradient, of "warmup_steps" their number; of "initialisation"
            "critical", "he" or "xavier", of "normalisation" "layer" or "batch", of "activation" its name; of
            "check_samples" their indices, of "train_parameters" their names; None of all others. "balance_classes" adds
            to the scores, in the training loss, the logarithm of each class's share of the samples.

    Raises:
        InputError: another kind, or a value that is none of that kind.

    Example:
        >>> Change("learning_rate", 0.1)
        Change(kind='learning_rate', value=0.1)
    """

    kind: str
    value: Any = None

    def __post_init__(self) -> None:
        """Lists, as records hold them, become tuples; what is no such value is refused."""
        check_option("Change", "kind", self.kind, tuple(KINDS))
        if isinstance(self.value, list):
            object.__setattr__(self, "value", tuple(self.value))
        expected, holds = KINDS[self.kind]
        if not holds(self.value):
            got = repr(self.value)
            raise input_error("Change", f"a value of {self.kind!r} that is {expected}", got, f"Pass {expected}")

    def as_record(self) -> dict[str, Any]:
        """As a record holds it."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {"kind": self.kind, "value": value}

    @classmethod
    def from_record(cls, record: object) -> Change | None:
        """The change of a record; None where there is none, or one that this version does not know."""
        if not isinstance(record, Mapping):
            return None
        kind, value = record.get("kind"), record.get("value")
        value = tuple(value) if isinstance(value, list) else value
        return cls(kind, value) if isinstance(kind, str) and kind in KINDS and KINDS[kind][1](value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_factor(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return " or ".join(map(repr, names)), lambda value: isinstance(value, str) and value in names


def _several(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and len(value) > 0 and all(type(each) is kind for each in value)


_FACTOR = ("a factor above 0", _is_factor)
_NONE = ("None", lambda value: value is None)

KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # kind -> what its value is, in words and as a check
    "learning_rate": _FACTOR,
    "batch_size": _FACTOR,
    "clip_norm": ("a norm above 0", _is_factor),
    "warmup_steps": ("a number of steps from 1", _is_count),
    "weight_decay": ("a factor from 0", lambda value: _is_number(value) and value >= 0),
    "initialisation": _one_of("critical", "he", "xavier"),
    "activation": ("the name of an activation", lambda value: isinstance(value, str) and bool(value)),
    "normalisation": _one_of("layer", "batch"),
    "residual": _NONE,
    "standardise_inputs": _NONE,
    "standardise_targets": _NONE,
    "shuffle": _NONE,
    "check_samples": ("a tuple of indices", _several(int)),
    "balance_classes": _NONE,
    "loss_from_logits": _NONE,
    "zero_grad": _NONE,
    "train_parameters": ("a tuple of names", _several(str)),
    "early_stopping": _NONE,
}
