"""Names out of a record that may be damaged, and how many of them a sentence holds."""

from __future__ import annotations

from typing import Any

NUM_NAMED = 4


def listed(names: list[str]) -> str:
    """The first few, and how many more there are."""
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + rest


def names_in(value: Any) -> list[str]:
    """Those of a list; empty where it is none."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def as_dict(value: Any) -> dict[str, Any]:
    """The dict itself; an empty one where it is none."""
    return value if isinstance(value, dict) else {}
