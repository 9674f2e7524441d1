"""A batch: tensors, or tuples, lists, dicts and dataclasses of tensors, nested, with samples along their first axis."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pullback._checks import input_error

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
Batch = Any  # a Tensor (N, ...), or a tuple, list or dict of them; leaves that are no tensors are passed through


def num_samples(batch: Batch, where: str = "num_samples", name: str = "x") -> int:
    """Number of samples N: the first axis that all tensors of the batch share.

    Example:
        >>> num_samples({"ids": torch.zeros(4, 7), "mask": torch.ones(4, 7)})
        4
    """
    if isinstance(batch, Tensor) and batch.dim() and (count := batch.shape[0]):  # as most are
        return count
    sizes = {leaf.shape[0] if leaf.dim() else 0 for leaf in tensors(batch)}  # `len` of a tensor asks torch's tracer
    if not sizes and tree_leaves(batch):
        raise input_error(
            where,
            f"`{name}` as a tensor (N, ...), or a tuple, list or dict of them",
            type(batch).__name__,
            "Convert arrays and numbers with torch.as_tensor",
        )
    if not sizes or sizes == {0}:
        raise input_error(where, f"`{name}` with at least one sample", "no data", f"Pass a non-empty `{name}`")
    if len(sizes) > 1:
        raise input_error(
            where,
            f"tensors in `{name}` with one common first axis (N, ...)",
            f"first axes {sorted(sizes)}",
            "Put the samples along the first axis of every tensor",
        )
    return sizes.pop()


def tensors(batch: Batch) -> list[Tensor]:
    """List the tensor leaves of a batch in a fixed order."""
    if isinstance(batch, Tensor):
        return [batch]
    leaves: list[Tensor] = []
    mapped(leaves.append, batch)
    return leaves


def mapped(change: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """The batch with ``change`` of every tensor in its place; containers are new, of the kind they were.

    Mappings that torch's tree functions do not know (a tokenizer's output) count as dicts, wherever they stand, and
    so do dataclasses.
    """
    if isinstance(batch, Tensor):  # no tree to walk
        return change(batch)

    def of_node(node: Any) -> Any:
        if isinstance(node, Tensor):
            return change(node)
        if isinstance(node, Mapping):
            return _with_values(node, change)
        return _with_fields(node, change) if _is_record(node) else node

    return tree_map(of_node, batch, is_leaf=lambda node: isinstance(node, Mapping) or _is_record(node))


def _is_record(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _with_fields(node: Any, change: Callable[[Tensor], Any]) -> Any:
    new = copy.copy(node)
    for field in dataclasses.fields(node):
        object.__setattr__(new, field.name, mapped(change, getattr(node, field.name)))  # also of frozen ones
    return new


def _with_values(node: Mapping[Any, Any], change: Callable[[Tensor], Any]) -> Any:
    values = {key: mapped(change, value) for key, value in node.items()}
    if type(node) is dict or not isinstance(node, dict | UserDict):
        return values
    new = copy.copy(node)
    for key, value in values.items():
        new[key] = value
    return new


def filled(batch: Batch, given: Iterable[Any]) -> Batch:
    """The batch with other tensors in place of its own, in the order of ``tensors``."""
    following = iter(given)
    return mapped(lambda _: next(following), batch)


def copied(batch: Batch) -> Batch:
    """A batch of copies, to be written to. They stay in their graph; one tensor in two places becomes two."""
    return mapped(Tensor.clone, batch)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of one structure, one after the other; what is no tensor is taken from the first."""
    return filled(batches[0], [torch.cat(same) for same in zip(*map(tensors, batches), strict=True)])


def plain(batch: Batch) -> Batch:
    """The batch with dicts for all mappings, which torch's tree functions know."""
    is_mapping: Callable[[Any], bool] = lambda node: isinstance(node, Mapping)
    return tree_map(lambda n: {k: plain(v) for k, v in n.items()} if is_mapping(n) else n, batch, is_leaf=is_mapping)


def without_inference(batch: Batch) -> Batch:
    """The batch with copies of tensors made under ``torch.inference_mode``, which no graph can hold."""
    return mapped(lambda t: t.clone() if t.is_inference() else t, batch)


def take(batch: Batch, index: int | slice | Tensor | list[int] | None) -> Batch:
    """Samples of a batch, of every tensor in it; a number alone gives one sample, without the first axis.

    None gives a lone sample that axis back.

    Example:
        >>> batch = {"ids": torch.arange(6).reshape(3, 2)}
        >>> take(batch, slice(1, 2)), take(take(batch, 1), None)
        ({'ids': tensor([[2, 3]])}, {'ids': tensor([[2, 3]])})
    """
    return mapped(lambda leaf: leaf[index], batch)


def check_rows(where: str, outputs: Tensor, count: int) -> None:
    """Refuse outputs that have no row for every sample, (N T, C) for N samples say."""
    rows = len(outputs) if outputs.dim() else 1
    if rows != count:
        several = rows > count and rows % count == 0
        remedy = f"Return (N, T, ...), `outputs.unflatten(0, (len(x), {rows // max(1, count)}))`"
        raise input_error(
            where,
            "one row of outputs per sample",
            f"{rows} rows of outputs for {count} samples",
            remedy if several else "Put samples along the first axis",
        )


def check_batch(where: str, x: Batch, y: Batch | None = None, names: tuple[str, str] = ("x", "y")) -> int:
    """Return N after checking that the data is not empty, finite and of matching lengths."""
    count = num_samples(x, where, names[0])
    if y is not None and (labels := num_samples(y, where, names[1])) != count:
        raise input_error(
            where,
            f"`{names[0]}` and `{names[1]}` of the same length",
            f"{count} and {labels} samples",
            f"Pass `{names[1]}.unflatten(0, (len({names[0]}), {labels // count}))`, with outputs (N, T, ...)"
            if labels > count and labels % count == 0
            else "Pass one target per sample",
        )
    for name, batch in zip(names, (x, y), strict=True):
        for leaf in tensors(batch):
            if leaf.layout in SPARSE:
                remedy = f"Pass `{name}.to_dense()`"
                raise input_error(where, f"dense tensors in `{name}`", f"one of layout {leaf.layout}", remedy)
            if leaf.device.type == "meta":  # only shapes are known
                continue
            # one pass over the data: a sum of finite numbers that overflows is looked at again, entry by entry
            if leaf.is_floating_point() and not torch.isfinite(leaf.sum()) and not torch.isfinite(leaf).all():
                bad = int((~torch.isfinite(leaf.reshape(count, -1))).any(1).nonzero()[0])
                raise input_error(
                    where,
                    f"finite numbers in `{name}`",
                    f"NaN or infinity in sample {bad}",
                    "Remove or repair that sample",
                )
    return count


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Hide torch's remark that an operation has no batching rule and is looped over: it is no fault of the user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield
