"""Other tensors in place of a module's parameters and buffers, for as long as a block lasts.

``torch.func.functional_call`` goes by names: a module that is registered under two of them is replaced twice, and the
second time what is noted down as its own are the values that stand in. Here every tensor is found by what it is, in
each module that owns it, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves

from pullback._checks import check_names, input_error
from pullback.functional.walk import parts_of

# what makes torch's checkpoints without re-entry forget what they compute; private, since torch 2.1
_HOOK = "_checkpoint_hook"

Home = tuple[Any, Any, Tensor]  # what holds a tensor, the key or place it is under, the tensor


@contextmanager
def stand_in(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "stand_in") -> Iterator[None]:
    """Within the block ``module`` computes with ``tensors``, by name; after it, or an exception, with its own again.

    A tensor takes the place of what its name stands for wherever that is used: tied parameters, and modules that are
    registered under several names. Tensors of any kind may stand in, also those of a transformation of torch.func.

    Raises:
        InputError: a name the module does not have; two tensors for what is one parameter.

    Cost: a walk over the modules; nothing is copied.
    """
    given = _by_identity(module, tensors, where) if tensors else {}
    with kept_attributes(module), _computed_anew(), _without_checkpoints() if given else nullcontext():
        homes = [home for home in _homes(module) if id(home[2]) in given] if given else []
        try:
            for home, name, tensor in homes:
                home[name] = given[id(tensor)]
            yield
        finally:
            for home, name, tensor in homes:
                home[name] = tensor


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Activation checkpoints keep what they compute.

    What they compute anew in the backward pass, when nothing stands in any more, would be of the module's own tensors.
    """
    own = getattr(checkpoint, _HOOK, None)
    if own is None:
        yield
        return
    setattr(checkpoint, _HOOK, lambda frame: nullcontext())
    try:
        yield
    finally:
        setattr(checkpoint, _HOOK, own)


def _by_identity(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> dict[int, Tensor]:
    """What stands in, by the id of the module's own tensor."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    check_names(where, "parameters or buffers", tensors, own)
    given: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if given.setdefault(id(own[name]), tensor) is not tensor:
            raise input_error(where, f"one tensor for the shared `{name}`", "two", "Pass it under one of its names")
    return given


def _homes(module: nn.Module) -> Iterator[Home]:
    """Every place a module keeps tensors in, each once; recurrent layers, for one, list their parameters once more."""
    for part in parts_of(module):
        for home in (part._parameters, part._buffers, *_plain(part)):
            pairs = enumerate(home) if isinstance(home, list) else home.items()
            yield from ((home, key, value) for key, value in list(pairs) if isinstance(value, Tensor))


def _plain(part: nn.Module) -> list[Any]:
    """The attributes of a module that are not registered, and the lists and dicts among them."""
    own = vars(part)
    return [own, *(v for name, v in own.items() if isinstance(v, list | dict) and name not in _REGISTRIES)]


@contextmanager
def kept_attributes(module: nn.Module) -> Iterator[None]:
    """Put back, after the block, plain attributes of modules that held tensors before or hold some then.

    Layers leave some behind in a forward pass: torch's older weight norm the weight, recurrent layers a list of theirs.
    Made of what stood in for a moment, they would outlive it.
    """
    before = {part: dict(vars(part)) for part in parts_of(module)}
    try:
        yield
    finally:
        for part, attributes in before.items():
            own = vars(part)
            same_names = len(own) == len(attributes) and all(map(is_, own, attributes))  # in their order, too
            if same_names and all(map(is_, own.values(), attributes.values())):
                continue
            for name, value in [*own.items()]:
                if name not in attributes and _holds_tensors(name, value):
                    del own[name]
            for name, value in attributes.items():
                if own.get(name) is not value and (_holds_tensors(name, value) or _holds_tensors(name, own.get(name))):
                    own[name] = value


def _holds_tensors(name: str, value: Any) -> bool:
    """Whether an attribute is a tensor that is not registered, or a list, tuple or dict with tensors."""
    if isinstance(value, list | tuple | dict) and name not in _REGISTRIES:
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    return isinstance(value, Tensor)


_REGISTRIES = frozenset(vars(nn.Module()))  # of parameters, buffers, modules and hooks


@contextmanager
def _computed_anew() -> Iterator[None]:
    """Within ``parametrize.cached()`` a weight is kept that was made of the module's own tensors: not in the block."""
    kept = dict(parametrize._cache)
    parametrize._cache.clear()
    try:
        yield
    finally:
        parametrize._cache.clear()
        parametrize._cache.update(kept)
