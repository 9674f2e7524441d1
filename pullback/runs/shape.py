"""What cells of one shape have in common, see ``runs.packed_columns``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

PLACES = {"f": 0, "i": 1, "t": 2, "b": 2}  # letters of leaves, and which of the three rows of leaves has them


@dataclass(frozen=True)
class Shape:
    """What cells of one shape have in common: the cell as JSON, with a letter in place of each leaf."""

    template: Any

    @cached_property
    def counts(self) -> tuple[int, int, int]:
        """Leaves with a point, whole ones, and texts."""
        found = [0, 0, 0]
        for leaf in _leaves(self.template):
            found[PLACES[leaf]] += 1
        return found[0], found[1], found[2]

    @cached_property
    def numbers(self) -> dict[str | int | None, tuple[str, int]]:
        """Of the cell (None), or under its keys or at its places: letter of a number, its place among the leaves."""
        template = self.template
        listed = enumerate(template) if isinstance(template, list) else [(None, template)]
        inner: Iterable[tuple[str | int | None, Any]] = template.items() if isinstance(template, dict) else listed
        found: dict[str | int | None, tuple[str, int]] = {}
        before = [0, 0, 0]
        for key, part in inner:
            if isinstance(part, str) and part != "t":
                found[key] = part, before[PLACES[part]]
            for leaf in _leaves(part):
                before[PLACES[leaf]] += 1
        return found


def _leaves(template: Any) -> Iterator[str]:
    if isinstance(template, str):
        yield template
    elif isinstance(template, list | dict):
        for each in template.values() if isinstance(template, dict) else template:
            yield from _leaves(each)
