"""Argument checks, and the one place that words errors: what was expected, what came, one remedy."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable
from typing import Any


class PullbackError(Exception):
    """Base of the errors that name a cause and a remedy; the command line prints them without a traceback."""


class InputError(PullbackError, ValueError):
    """An argument, a file or a model is not what the call needs."""


class UnsupportedError(PullbackError, ValueError):
    """The question has no exact answer for this model or loss, for example batch norm in train mode."""


class SelfCheckError(PullbackError, RuntimeError):
    """A result failed one of the checks every call makes on itself; nothing is returned."""


def sentence(where: str, expected: str, got: str, remedy: str) -> str:
    """Word an error: ``{where}: expected {expected}, got {got}. {remedy}.``."""
    return f"{where}: expected {expected}, got {got}. {remedy.rstrip('.')}."


def input_error(where: str, expected: str, got: str, remedy: str) -> InputError:
    """Build (not raise) an ``InputError`` with the standard sentence."""
    return InputError(sentence(where, expected, got, remedy))


def unsupported(where: str, expected: str, got: str, remedy: str) -> UnsupportedError:
    """Build (not raise) an ``UnsupportedError`` with the standard sentence."""
    return UnsupportedError(sentence(where, expected, got, remedy))


def self_check_error(where: str, expected: str, got: str, remedy: str) -> SelfCheckError:
    """Build (not raise) a ``SelfCheckError`` with the standard sentence."""
    return SelfCheckError(sentence(where, expected, got, remedy))


def check_option(where: str, name: str, value: object, options: Collection[object]) -> None:
    """Refuse a value that is not one of a closed list, and print the list."""
    if value not in options:
        listed = ", ".join(repr(option) for option in options)
        raise input_error(where, f"`{name}` to be one of {listed}", repr(value), f"Choose one of {listed}")


def as_number(value: object) -> float:
    """A number, or a tensor or array of one; NaN for anything else, so that no comparison with it holds."""
    try:
        return math.nan if isinstance(value, str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def check_positive(where: str, name: str, value: object) -> None:
    """Refuse what is no number above zero."""
    if not as_number(value) > 0:
        raise input_error(where, f"`{name}` above 0", repr(value), f"Pass a positive `{name}`")


def check_rate(where: str, name: str, value: object) -> None:
    """Refuse what is no finite number above zero."""
    check_positive(where, name, value)
    if as_number(value) == math.inf:
        raise input_error(where, f"a finite `{name}`", repr(value), f"Pass a smaller `{name}`")


def check_count(where: str, name: str, value: Any, low: int, high: int | None = None) -> int:
    """Refuse what is no whole number from ``low`` to ``high``; returns it."""
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = None
    if count is None or count < low or (high is not None and count > high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise input_error(where, f"`{name}` {span}", repr(value), f"Choose `{name}` {span}")
    return count


def check_names(where: str, kind: str, asked: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that do not exist, listing the first few that do."""
    missing = [name for name in asked if name not in known]
    if missing:
        listed = ", ".join(list(known)[:8]) + (", …" if len(known) > 8 else "")
        raise input_error(where, f"{kind} among {listed}", ", ".join(map(repr, missing)), f"Use existing {kind}")
