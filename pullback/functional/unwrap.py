"""What is put around models and calls: compilation, data parallelism, sharding, autocast.

Compiled code shows no calls of torch functions and data parallelism synchronises with other processes, so a model
is evaluated without either: the same parameters, the eager code, no collective. Sharded parameters are not there as
a whole; what is left of them on a process must not be taken for the parameter itself. Autocast belongs to the
model's evaluation, not to the products this package makes of what it recorded; hooks on parameters belong to training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pullback._checks import unsupported
from pullback.functional.walk import parameters_of, parts_of, types_of

MANAGED = "_is_fsdp_managed_module"  # FSDP's mark, in both of its versions, for torch's compiler
COMPILED = "_orig_mod"  # the name torch.compile's wrapper keeps the module under


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DistributedDataParallel`` and ``DataParallel``, in any order.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> unwrap(DataParallel(torch.compile(layer, backend="eager"))) is layer
        True
    """
    *_, inside = _nested(model)
    return inside


def is_replica(model: nn.Module) -> bool:
    """Whether the model is one of ``DistributedDataParallel``'s copies, but not that of its first process.

    Example:
        >>> is_replica(nn.Linear(2, 1))
        False
    """
    return any(
        isinstance(module, DistributedDataParallel) and torch.distributed.get_rank(module.process_group) > 0
        for module in _nested(model)
    )


def _nested(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what is inside its wrappers one after the other; the last one is none."""
    while True:
        yield model
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif COMPILED in model._modules:
            model = model.get_submodule(COMPILED)
        else:
            return


@contextmanager
def eager() -> Iterator[None]:
    """Run the eager code of everything compiled: submodules, methods, losses."""
    if "torch._dynamo" in sys.modules:  # loading the compiler takes a second, and without it nothing is compiled
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """Products of this package's own in the dtype of their factors; also a decorator, ``@without_autocast()``."""
    with ExitStack() as stack:
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Evaluate the model without autocast, also where the accelerate package has put it around ``model.forward``."""
    own = unwrap(model).__dict__
    cast, plain = own.get("forward"), own.get("_original_forward")
    wrapped = cast is not None and plain is not None
    if wrapped:
        own["forward"] = plain
    try:
        with without_autocast():
            yield
    finally:
        if wrapped:
            own["forward"] = cast


@contextmanager
def without_parameter_hooks(model: nn.Module) -> Iterator[None]:
    """Hooks on parameters, which watch or change gradients in training, are not called in the block."""
    held = [(p._backward_hooks, dict(p._backward_hooks)) for p in parameters_of(model) if p._backward_hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in held:
            hooks.update(saved)


def refuse_sharded(model: nn.Module, where: str) -> None:
    """Refuse parameters that are spread over processes, as FSDP and tensor parallelism leave them.

    FSDP models are refused also while their parameters are gathered: they may be sharded again in the middle of the
    forward pass, and with ``use_orig_params`` the pass does not even use the parameters it shows.
    """
    if (kind := _sharding(model)) is not None:
        raise unsupported(
            where,
            "whole parameters on this process",
            kind,
            "Build the model once more without sharding and fill it, on every rank, with "
            "copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))) "
            "from torch.distributed.checkpoint.state_dict",
        )


def _sharding(model: nn.Module) -> str | None:
    """What the model's parameters are spread by, None if they are whole."""
    parts = parts_of(model)
    kinds = {kind for kind in set(map(type, parts)) if getattr(kind, MANAGED, False)}  # takes long to say no
    marked = [part for part in parts if MANAGED in part.__dict__ or type(part) in kinds]
    managed = {part for part in marked if part.__dict__.get(MANAGED, True)}
    if managed:
        name = next(name for name, part in model.named_modules() if part in managed)
        return f"parameters managed by FSDP in layer `{name}`" if name else "parameters managed by FSDP"
    distributed = sys.modules.get("torch.distributed.tensor")  # not loaded, no such tensor
    if distributed is not None and any(issubclass(kind, distributed.DTensor) for kind in types_of(model)):
        return next(f"the DTensor `{n}`" for n, p in model.named_parameters() if isinstance(p, distributed.DTensor))
    return None
