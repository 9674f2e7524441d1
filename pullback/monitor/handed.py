"""What a loop hands over: losses, step numbers and optimizers in the forms that loops have them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        count = loss.numel()
        _refuse(complex_=loss.is_complex(), count=count)
        return float(loss.item() if count == 1 else loss.detach().double().mean())
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


def as_tensors(model: nn.Module, batch: Any) -> Any:
    """The batch with tensors for arrays, and for lists of numbers: what the loop must have made of them for its model.

    Numbers with a point take the dtype of the model's parameters, whole ones are int64. Tensors are handed on as they
    are, on their device and in their dtype, and so is what holds no array.
    """
    if isinstance(batch, Tensor) or batch is None or isinstance(batch, str | bytes):
        return batch
    if isinstance(batch, Mapping):
        made = {key: as_tensors(model, value) for key, value in batch.items()}
        return batch if all(made[key] is batch[key] for key in made) else made
    if isinstance(batch, list | tuple) and not (isinstance(batch, list) and _are_numbers(batch)):
        parts = [as_tensors(model, each) for each in batch]
        if all(a is b for a, b in zip(parts, batch, strict=True)):
            return batch
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, list) or callable(getattr(batch, "__array__", None)):
        return _as_tensor(model, np.asarray(batch))
    return batch


def _are_numbers(batch: list[Any]) -> bool:
    return bool(batch) and all(isinstance(each, int | float | np.generic) for each in batch)


def _as_tensor(model: nn.Module, array: np.ndarray) -> Any:
    if array.dtype.kind not in "biuf":  # texts, objects, complex numbers: no model was called with these
        return array
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.bool if array.dtype.kind == "b" else torch.int64
    if array.dtype.kind == "f":
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
    return torch.tensor(array, dtype=dtype, device=None if weight is None else weight.device)


def as_index(value: Any) -> int | None:
    """A whole number of Python, NumPy or torch; None for anything else."""
    try:
        return operator.index(value)
    except Exception:  # no number, or an object of the user's
        return None


def as_indices(values: Any) -> tuple[int, ...]:
    """Whole numbers out of a list, an array or a tensor of one axis.

    Raises:
        TypeError: anything else.
    """
    given = values.tolist() if callable(getattr(values, "tolist", None)) else values
    indices = [None if isinstance(each, bool) else as_index(each) for each in given]
    if None in indices:
        message = "no whole number for each sample"
        raise TypeError(message)
    return tuple(each for each in indices if each is not None)


def chosen_start(max_samples: int, resume: Any, where: str) -> int | None:
    """Steps a resumed training has behind it, as Python's number; None of a new one.

    Raises:
        InputError: no such number, or samples of which nothing can be told.
    """
    if max_samples < 2:
        raise input_error(where, "`max_samples` of at least 2", repr(max_samples), "Pass more samples")
    made = as_index(resume)
    if resume is not None and (isinstance(resume, bool) or made is None or made < 0):
        raise input_error(where, "`resume` as a whole number from 0", repr(resume), "Pass the steps made so far")
    return made


def chosen_optimizers(optimizer: Any, where: str) -> tuple[torch.optim.Optimizer, ...] | None:
    """One optimizer or several, taken out of the wrappers of accelerate and Lightning; None without any.

    Raises:
        InputError: what has no ``param_groups``.
    """
    if optimizer is None:
        return None
    several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
    optimizers = tuple(_inside(each) for each in several)
    for each in optimizers:
        groups = getattr(each, "param_groups", None)
        if not isinstance(groups, list) or not all(isinstance(g, dict) and "params" in g for g in groups):
            got = f"{type(each).__name__} without `param_groups`"
            raise input_error(where, "`optimizer` as an optimizer of torch, or a list of them", got, "Pass it, or None")
    return optimizers or None


def _inside(optimizer: Any) -> Any:
    for _ in range(DEEPEST):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            break
        optimizer = inner
    return optimizer
