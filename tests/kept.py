"""Results as lists of numbers, truth values and words, to be kept in files and compared."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

# What rounding may change: how far iterations went, what they left, the sign of a vector.
BY_ROUNDING = {"num_matvecs", "iterations", "residual", "residuals", "history", "vectors", "text", "places"}


def flat(value: Any, most: int = 6) -> list[Any]:
    """Of whatever a call returns; of long lists three at either end."""
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name[0] != "_" and field.name not in BY_ROUNDING]
        return [each for name in names for each in flat(getattr(value, name), most)]
    if isinstance(value, dict):
        return [each for key, part in value.items() for each in (str(key), *flat(part, most))]
    if isinstance(value, Tensor):
        value = value.detach()
    if isinstance(value, Tensor | np.ndarray):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple):
        kept = value if len(value) <= most else [*value[: most // 2], *value[-(most // 2) :]]
        return [each for part in kept for each in flat(part, most)]
    return [value if isinstance(value, bool | str) else str(value) if value is None else float(value)]


def differences(found: list[Any], expected: list[Any], relative: float = 1e-6, absolute: float = 1e-9) -> list[Any]:
    """Places and both values where two lists are not alike."""
    assert len(found) == len(expected), f"{len(found)} values, where {len(expected)} are kept"
    pairs = enumerate(zip(found, expected, strict=True))
    return [(place, a, b) for place, (a, b) in pairs if not _alike(a, b, relative, absolute)]


def _alike(a: Any, b: Any, relative: float, absolute: float) -> bool:
    if isinstance(a, bool | str) or isinstance(b, bool | str):
        return bool(a == b)
    return (math.isnan(a) and math.isnan(b)) or a == b or bool(abs(a - b) <= relative * abs(b) + absolute)
