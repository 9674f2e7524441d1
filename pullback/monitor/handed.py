"""What a loop hands over: losses, step numbers and optimizers in the forms that loops have them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback._checks import input_error

DEEPEST = 8  # wrappers around an optimizer


def as_number(loss: Any) -> float:
    """The loss as the loop reports it: a number, a tensor, an array; the mean of several (one loss a sample).

    Raises:
        TypeError: texts, dicts, and what is no number otherwise.
        ValueError: complex numbers, and none at all.
    """
    if isinstance(loss, str | bytes | Mapping) or loss is None:
        message = f"{type(loss).__name__} is no number"
        raise TypeError(message)
    if isinstance(loss, Tensor):
        _refuse(complex_=loss.is_complex(), count=loss.numel())
        loss = loss.detach()
        return float(loss if loss.numel() == 1 else loss.double().mean())
    if isinstance(loss, list | tuple):
        _refuse(complex_=False, count=len(loss))
        return sum(map(as_number, loss)) / len(loss)
    if callable(getattr(loss, "tolist", None)) and getattr(loss, "shape", None):  # arrays of NumPy and its kin
        values = np.asarray(loss)
        _refuse(complex_=np.iscomplexobj(values), count=values.size)
        return float(values.astype(np.float64).mean())
    return float(loss)


def _refuse(*, complex_: bool, count: int) -> None:
    if complex_ or not count:
        message = "complex numbers" if complex_ else "no number at all"
        raise ValueError(message)


def as_index(value: Any) -> int | None:
    """A whole number of Python, NumPy or torch; None for anything else."""
    try:
        return operator.index(value)
    except Exception:  # no number, or an object of the user's
        return None


def chosen_optimizers(optimizer: Any, where: str) -> tuple[torch.optim.Optimizer, ...] | None:
    """One optimizer or several, taken out of the wrappers of accelerate and Lightning; None without any.

    Raises:
        InputError: what has no ``param_groups``.
    """
    if optimizer is None:
        return None
    several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
    found = tuple(_inside(each) for each in several)
    for each in found:
        groups = getattr(each, "param_groups", None)
        if not isinstance(groups, list) or not all(isinstance(g, dict) and "params" in g for g in groups):
            got = f"{type(each).__name__} without `param_groups`"
            raise input_error(where, "`optimizer` as an optimizer of torch, or a list of them", got, "Pass it, or None")
    return found or None


def _inside(optimizer: Any) -> Any:
    for _ in range(DEEPEST):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer
