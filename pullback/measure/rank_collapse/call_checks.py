"""What a model is called with: checked before, and looked at again when the call fails."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pullback._checks import PullbackError, input_error
from pullback.functional.batch import Batch, tensors

TORCH = str(Path(torch.__file__).parent)
SELF = ("query", "key", "value")  # what a layer of attention is called with


def checked(model: nn.Module, inputs: Batch | None, where: str) -> Batch:
    """Inputs of a model: tensors with numbers, for every argument it needs; one for a layer of attention three times.

    Raises:
        InputError: what is no tensor, or has no numbers; an argument that is missing or unknown.
    """
    if inputs is None:
        raise input_error(where, "`inputs` for a module", "None", "Pass what the model is called with")
    leaves = tensors(inputs)
    if not leaves or any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(inputs)):
        got = type(inputs).__name__ if not isinstance(inputs, tuple | list | Mapping) else f"{inputs!r:.40}"
        remedy = "Convert arrays and numbers with torch.as_tensor, and text with the model's tokenizer"
        raise input_error(where, "`inputs` as a tensor, or a tuple, list or dict of them", got, remedy)
    for leaf in [*leaves, *model.parameters()]:
        if leaf.is_meta:
            remedy = "Move the model and its inputs to a device that holds numbers"
            raise input_error(where, "a model and `inputs` of numbers", "shapes alone, on device meta", remedy)
    for leaf in leaves:
        check_dense(leaf, where)
    inputs = _three_times(model, inputs)
    _check_arguments(model, inputs, where)
    return inputs


def check_dense(x: Tensor, where: str) -> None:
    """Refuse what is sparse, nested, quantised, empty, or (of features) not finite."""
    if x.layout != torch.strided or x.is_nested or x.is_quantized:
        remedy = "Convert with to_dense, dequantize, or to_padded_tensor and a mask of the padding"
        raise input_error(where, "dense tensors in `inputs`", "a sparse, nested or quantised one", remedy)
    if not x.numel():
        raise input_error(
            where, "`inputs` with a sample of tokens", f"{tuple(x.shape)}", "Pass samples that are not empty"
        )
    features = x.is_floating_point() and x.dim() > 2  # not a mask, which may hold infinities
    if features and not bool(torch.isfinite(x).all()):
        raise input_error(where, "finite numbers in `inputs`", "NaN or infinity", "Remove or repair that sample")


def _three_times(model: nn.Module, inputs: Batch) -> Batch:
    """A tensor alone as queries, keys and values, for a layer that needs these three."""
    alone = inputs if isinstance(inputs, Tensor) else inputs[0] if _is_row(inputs) and len(inputs) == 1 else None
    names = [name for name, given in _arguments(model).items() if given.default is inspect.Parameter.empty]
    return (alone,) * 3 if isinstance(alone, Tensor) and tuple(names) == SELF else inputs


def _is_row(inputs: Batch) -> bool:
    return isinstance(inputs, tuple | list)


def _arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # compiled code has none
        return {}


def _check_arguments(model: nn.Module, inputs: Batch, where: str) -> None:
    """Refuse inputs that the forward method's arguments do not fit."""
    known = _arguments(model)
    if not known:
        return
    by_name = isinstance(inputs, Mapping) and any(name in known for name in inputs)
    args = () if by_name else tuple(inputs) if _is_row(inputs) else (inputs,)
    try:
        inspect.Signature(list(known.values())).bind(*args, **(inputs if by_name else {}))
    except TypeError as error:
        raise input_error(
            where,
            f"`inputs` for {_named(known)}",
            str(error).removeprefix("got "),
            "Pass a tuple in that order, or a dict",
        ) from None


def _named(known: Mapping[str, inspect.Parameter]) -> str:
    return "the model's arguments " + ", ".join(f"`{name}`" for name in known)


@contextmanager
def explained(model: nn.Module, inputs: Batch, where: str) -> Iterator[None]:
    """Say what is wrong with inputs where torch refuses them; what a model raises itself passes through, with a note.

    Raises:
        InputError: inputs of another dtype, device or size than the model's.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        if isinstance(error, PullbackError | torch.OutOfMemoryError):
            raise
        where_from, line = _raised(error)
        in_torch = where_from.startswith(TORCH)
        said = None
        if in_torch or not line.startswith("raise"):  # by what torch or Python was asked for
            said = next((found for why in REASONS if (found := why(model, inputs)) is not None), None)
        sizes = ", ".join(f"{tuple(x.shape)} {str(x.dtype)[6:]}" for x in tensors(inputs))
        if said is None and in_torch:
            said = "`inputs` that the model takes", f"{sizes}: {error}", "Compare them with what its first layers need"
        if said is not None:
            raise input_error(where, *said) from error
        raise


def _raised(error: BaseException) -> tuple[str, str]:
    """File and line that an error comes from."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    file, number = ("", 0) if at is None else (at.tb_frame.f_code.co_filename, at.tb_lineno)
    return file, linecache.getline(file, number).strip()


Said = tuple[str, str, str]


def _other_names(model: nn.Module, inputs: Batch) -> Said | None:
    known = _arguments(model)
    if not isinstance(inputs, Mapping) or any(name in known for name in inputs):
        return None
    return f"`inputs` for {_named(known)}", ", ".join(map(repr, inputs)), "Pass them by these names"


def _other_device(model: nn.Module, inputs: Batch) -> Said | None:
    devices = {parameter.device for parameter in model.parameters()}
    got = {x.device for x in tensors(inputs)} - devices
    if len(devices) != 1 or not got:
        return None
    return f"`inputs` on {devices.pop()}", f"{got.pop()}", "Move the inputs to the model's device"


def _other_ids(model: nn.Module, inputs: Batch) -> Said | None:
    sizes = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    ids = [x for x in tensors(inputs) if not x.is_floating_point() and not x.is_complex()]
    if sizes and not ids:
        return "token ids, whole numbers, in `inputs`", str(tensors(inputs)[0].dtype)[6:], "Convert them with .long()"
    for x in ids if sizes else []:
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= max(sizes):
            return f"token ids from 0 to {max(sizes) - 1}", f"{low} to {high}", "Use the model's own tokenizer"
    return None


def _other_dtype(model: nn.Module, inputs: Batch) -> Said | None:
    own = {str(p.dtype)[6:] for p in model.parameters() if p.is_floating_point()}
    tables = any(isinstance(part, nn.Embedding) for part in model.modules())
    got = next(
        (x for x in tensors(inputs) if str(x.dtype)[6:] not in own and (x.is_floating_point() or not tables)), None
    )
    if len(own) != 1 or got is None:
        return None
    return f"`inputs` of the model's dtype {own.pop()}", str(got.dtype)[6:], "Convert one of them with .to(...)"


REASONS: tuple[Callable[[nn.Module, Batch], Said | None], ...] = (_other_names, _other_device, _other_ids, _other_dtype)
