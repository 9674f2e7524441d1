"""What a trainer measured on held-out data, under the names a run record has for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PROBE = "test"  # of their records, as loops that are no trainers name them
_HELD_OUT = re.compile(r"^(val|valid|validation|eval|evaluation|test|dev)[_/.\- ]+", re.IGNORECASE)
_NAMES = {"loss": "loss", "acc": "accuracy", "accuracy": "accuracy"}
_OF_THE_CLOCK = re.compile(r"(^|[_/])(runtime|\w+_per_second|\w+_time|epoch)$")  # no two runs have the same


def held_out(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as ``loss`` and ``accuracy`` where their name says so, all others under their own; no times.

    Example:
        >>> held_out({"val_loss": 0.5, "eval/acc": 0.75, "val_f1": 0.6, "eval_runtime": 3.0})
        {'loss': 0.5, 'accuracy': 0.75, 'val_f1': 0.6}
    """
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if _OF_THE_CLOCK.search(name):
            continue
        known = _NAMES.get(_HELD_OUT.sub("", name).lower())
        found[name if known is None or known in found else known] = value
    return found
