"""Tensors saved for the backward pass: whose hooks save them, and what is said where a model has spoilt them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pullback._checks import unsupported

_noted: list[tuple[Any, Any]] = []


def saved_by() -> Any:
    """The hooks that save tensors for the backward pass, if any.

    What a checkpoint computes anew in the backward pass no mode sees, so calls inside it must not be changed: other
    tensors would be saved than are computed.
    """
    told = _told()
    if told is not None:
        return told(True)
    return _noted[-1] if _noted else None


def _told() -> Callable[[bool], Any] | None:
    """What torch tells the hooks by, from 2.8 on."""
    found: Callable[[bool], Any] | None = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return found


@contextmanager
def noted_hooks() -> Iterator[None]:
    """While this lasts ``saved_by`` knows of hooks also where torch, before 2.8, does not tell: as they come and go."""
    autograd = torch._C._autograd
    if _told() is not None:
        yield
        return
    push, pop = autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks

    def pushed(pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        push(pack_hook, unpack_hook)
        _noted.append((pack_hook, unpack_hook))

    def popped() -> None:
        pop()
        _noted.pop()

    autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks = pushed, popped
    try:
        yield
    finally:
        autograd._push_saved_tensors_default_hooks, autograd._pop_saved_tensors_default_hooks = push, pop


@contextmanager
def autograd_in_words(where: str) -> Iterator[None]:
    """In the block, models that autograd itself cannot differentiate are told so in words."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if "use_reentrant" in said:
            raise unsupported(
                where,
                "activation checkpointing with use_reentrant=False",
                "use_reentrant=True, whose backward pass gives gradients to all parameters or to none",
                "Pass use_reentrant=False to torch.utils.checkpoint, or to gradient_checkpointing_enable",
            ) from None
        if "modified by an inplace operation" in said:
            raise unsupported(
                where,
                "a model that does not overwrite what its backward pass needs",
                said.partition("operation: ")[2].partition(". Hint")[0],
                "Write to a copy there: loss.backward() fails on this model, too",
            ) from None
        raise
