"""Gradient factors on disk: the tensors of any dataclass of tensors, without pickling.

Only bytes are written. Classes, names and plain fields come from a template in memory: the factors of a few samples
of the same model, which every block's factors resemble but for the number of samples.

Tensors that share storage (views, an activation that feeds three layers) are written once, and come back with the
strides they had, so that products of loaded factors are those of captured ones to the bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.gradients.capture.captured import Captured
from pullback.kernels.store.disk_format import Folder, checksum

_ALIGN = 64  # bytes; what vectorised code likes
_HEAD = 16  # bytes that hold the header's length in decimal


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in dataclasses, dicts, lists and tuples, each with the path that leads to it."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    for key, part in _parts(value):
        yield from named_tensors(part, f"{name}/{key}")


def _parts(value: Any) -> list[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    return [(str(k), part) for k, part in enumerate(value)] if isinstance(value, list | tuple) else []


def rebuilt(template: Any, tensors: dict[str, Tensor], num_samples: int, name: str = "") -> Any:
    """The template with its tensors exchanged, and with fields called ``num_samples`` set."""
    if isinstance(template, Tensor):
        return tensors[name]
    parts = [(key, part, rebuilt(part, tensors, num_samples, f"{name}/{key}")) for key, part in _parts(template)]
    if is_dataclass(template) and not isinstance(template, type):
        own = {field.name for field in fields(template) if field.init}
        changed = {key: new for key, old, new in parts if new is not old}
        return replace(template, **changed | ({"num_samples": num_samples} if "num_samples" in own else {}))
    if isinstance(template, dict):
        return {key: part for key, (_, _, part) in zip(template, parts, strict=True)}
    if isinstance(template, list | tuple) and any(new is not old for _, old, new in parts):
        return type(template)(new for _, _, new in parts)
    return template


def structure(value: Any, name: str = "") -> Any:
    """What two blocks of one model have in common: classes, names and plain fields, the number of samples left out."""
    if isinstance(value, Tensor):
        return f"{name}: {value.dtype}, {value.dim()} axes"
    if parts := _parts(value):
        kept = [structure(part, f"{name}/{key}") for key, part in parts if key != "num_samples"]
        return [f"{name}: {type(value).__name__}", *kept]
    return f"{name}: {without_addresses(value)}"


def without_addresses(value: Any) -> str:
    """``repr``, which shows functions with their places in memory, without those."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def save(folder: Folder, target: Path, value: Any) -> dict[str, int]:
    """Write the tensors of ``value`` to one file; its size and checksum."""
    tensors = {name: tensor.cpu() for name, tensor in named_tensors(value)}
    buffers: list[np.ndarray] = []
    places: list[tuple[str, str, int, list[int], list[int]]] = []  # name, dtype, byte offset, shape, strides
    offset = 0
    for group in _by_storage(tensors):
        buffer, starts = _bytes_of([tensors[name] for name in group])
        for name, (start, strides) in zip(group, starts, strict=True):
            t = tensors[name]
            places.append((name, str(t.dtype).removeprefix("torch."), offset + start, list(t.shape), strides))
        padding = -len(buffer) % _ALIGN
        buffers += [buffer, np.zeros(padding, np.uint8)]
        offset += len(buffer) + padding
    header = json.dumps(places).encode()
    head = str(len(header)).encode().ljust(_HEAD) + header
    head += b" " * (-len(head) % _ALIGN)
    arrays = [np.frombuffer(head, np.uint8), *buffers]
    folder.replace(target, arrays)
    crc = 0
    for array in arrays:
        crc = checksum(array, crc)
    return {"bytes": len(head) + offset, "crc": crc}


class Buffers:
    """Memory that is used again and again: fresh pages cost the system more time than what is read into them."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """At least ``size`` bytes of any content."""
        for place, buffer in enumerate(self._free):
            if len(buffer) >= size:
                return self._free.pop(place)
        if self._free:
            self._free.pop()  # too small for what is asked for now
        return torch.empty(size, dtype=torch.uint8, device="cpu")

    def give(self, buffer: Tensor) -> None:
        """Give back what ``take`` returned, when nothing refers to it any more."""
        self._free.append(buffer)


def load(
    source: Path, entry: dict[str, Any], device: torch.device, memory: Tensor | None = None, *, checked: bool = False
) -> dict[str, Tensor] | None:
    """The tensors ``save`` wrote, or None if the file is not the one the entry describes.

    Args:
        source: the file.
        entry: what ``save`` returned.
        device: where the tensors are to be.
        memory: bytes to read into; the tensors are views of them where ``device`` is the CPU.
        checked: whether this process has read the file before and found its checksum right.
    """
    if not source.is_file() or source.stat().st_size != entry["bytes"]:
        return None
    data = torch.empty(entry["bytes"], dtype=torch.uint8, device="cpu") if memory is None else memory[: entry["bytes"]]
    array = data.numpy()
    with source.open("rb", buffering=0) as file:
        view, done = memoryview(array.data), 0
        while done < len(array) and (count := file.readinto(view[done:])):
            done += count
    if done < len(array) or not (checked or checksum(array) == entry["crc"]):
        return None
    length = int(bytes(array[:_HEAD]))
    places = json.loads(bytes(array[_HEAD : _HEAD + length]))
    data = data.to(device)[_HEAD + length + -(_HEAD + length) % _ALIGN :]
    tensors = {}
    for name, dtype_name, offset, shape, strides in places:
        dtype = getattr(torch, dtype_name)
        span = _span(shape, strides) * dtype.itemsize
        tensors[name] = data[offset : offset + span].view(dtype).as_strided(shape, strides)
    return tensors


def _span(shape: list[int], strides: list[int]) -> int:
    """Numbers from the first to the last of a strided tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _by_storage(tensors: dict[str, Tensor]) -> list[list[str]]:
    """Names of tensors, those that share storage and dtype together."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        groups.setdefault((pointer or name, tensor.dtype), []).append(name)
    return list(groups.values())


def _bytes_of(group: list[Tensor]) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """Bytes of tensors that share storage, and where each begins in them and with what strides.

    The stretch of storage they cover is taken as it is, unless it holds more than the tensors do.
    """
    size = group[0].element_size()
    offsets = [int(t.storage_offset()) for t in group]
    low, high = (
        min(offsets),
        max(k + _span(list(t.shape), list(t.stride())) for k, t in zip(offsets, group, strict=True)),
    )
    if high - low <= sum(t.numel() for t in group):
        whole = group[0].as_strided((high - low,), (1,), low)
        return _as_bytes(whole), [((k - low) * size, list(t.stride())) for k, t in zip(offsets, group, strict=True)]
    copies = [t.contiguous() for t in group]
    starts = np.cumsum([0, *(c.numel() for c in copies)])[:-1]
    whole = torch.cat([c.reshape(-1) for c in copies])
    return _as_bytes(whole), [(int(s) * size, list(c.stride())) for s, c in zip(starts, copies, strict=True)]


def _as_bytes(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


def factor_bytes(captured: Captured) -> int:
    """Bytes of the tensors of all factors."""
    return sum(t.numel() * t.element_size() for _, t in named_tensors(captured.factors))
