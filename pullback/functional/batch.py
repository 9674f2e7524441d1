"""A batch: tensors, or tuples, lists and dicts of tensors, with the samples along their first axis."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from pullback._checks import input_error

Batch = Any  # a Tensor (N, ...), or a tuple, list or dict of them; leaves that are no tensors are passed through


def num_samples(batch: Batch, where: str = "num_samples", name: str = "x") -> int:
    """Number of samples N: the first axis that all tensors of the batch share."""
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in tensors(batch)}
    if not sizes and tree_flatten(plain(batch))[0]:
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
    return [leaf for leaf in tree_flatten(plain(batch))[0] if isinstance(leaf, Tensor)]


def take(batch: Batch, index: int | slice | Tensor | list[int] | None) -> Batch:
    """Select samples; the sample axis stays, so one sample is a batch (1, ...). None adds an axis to a lone sample."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, plain(batch))


def plain(batch: Batch) -> Batch:
    """Mappings that are no dicts (a tokenizer's output) as dicts, which torch's tree functions know."""
    return dict(batch) if isinstance(batch, Mapping) and not isinstance(batch, dict) else batch


def check_batch(where: str, x: Batch, y: Batch | None = None, names: tuple[str, str] = ("x", "y")) -> int:
    """Return N after checking that the data is not empty, finite and of matching lengths."""
    count = num_samples(x, where, names[0])
    if y is not None and (labels := num_samples(y, where, names[1])) != count:
        raise input_error(
            where,
            f"`{names[0]}` and `{names[1]}` of the same length",
            f"{count} and {labels} samples",
            "Pass one target per sample",
        )
    for name, batch in zip(names, (x, y), strict=True):
        for leaf in tensors(batch):
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
