"""Combinations of which a part is tried by every run, and another by the slow ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch


def thinned(*columns: Sequence[Any]) -> list[Any]:
    """Combinations of one entry a column, for ``parametrize``; all but a third (half, sixth) are marked slow.

    In the third the places of the entries add up to a multiple of three: every entry is in it. Of two columns, one of
    which has two entries, it is a half; of one column every third entry. Of three or more, the longest of which has at
    least six entries, it is a sixth: any two entries of the others are in it together; another sixth is slow, and the
    rest, in which nothing new meets, is not made.
    """
    lengths = sorted(len(column) for column in columns)
    many = len(columns) > 2 and lengths[-1] >= 6
    part = 6 if many else 3 if len(columns) == 1 else min(3, lengths[-2])
    found = []
    for places in product(*(range(len(column)) for column in columns)):
        rest = sum(places) % part
        if many and rest not in (0, 3):
            continue
        entries = [column[place] for column, place in zip(columns, places, strict=True)]
        marks = pytest.mark.slow if rest else ()
        found.append(pytest.param(*entries, id="-".join(map(_name, entries)), marks=marks))
    return found


def _name(entry: Any) -> str:
    text = (
        str(entry)[6:]
        if isinstance(entry, torch.dtype)
        else str(getattr(entry, "name", getattr(entry, "__name__", entry)))
    )
    return text.replace(" ", "_")
