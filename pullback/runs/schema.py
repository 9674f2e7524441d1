"""The layout of a run folder, version 1, and what may stand in a record.

``run.json``        one object: schema, created, and whatever the writer knows about the run ("model", "settings", …)
``records.jsonl``   one object a line, only ever appended: {"step": 50, "time": 1.2, "probe": "kernel", "values": {…}}
                    A value is a number, a text, a flag, or a list or a dict of these. A probe that failed has
                    "error" in place of "values". A record of the probe "resume" at step s says that training went on
                    from there: what was recorded before it of later steps belongs to weights that were given up.
``arrays.zarr``     group: <probe>/<step>/<name>

JSON has no NaN and no infinity: they stand as the texts "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

SCHEMA_VERSION = 1
META_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
ARRAYS_FOLDER = "arrays.zarr"
RESUME = "resume"

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """A value with non-finite numbers spelled out, for JSON."""
    if isinstance(value, dict):
        return {str(key): encode(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def decode(value: Any) -> Any:
    """The reverse of ``encode``."""
    if isinstance(value, dict):
        return {key: decode(each) for key, each in value.items()}
    if isinstance(value, list):
        return [decode(each) for each in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def columns(probe: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and cells of a record: ``probe.metric``, and ``probe.metric.key`` for metrics that are dicts."""
    for metric, value in values.items():
        for key, cell in value.items() if isinstance(value, dict) else [(None, value)]:
            yield f"{probe}.{metric}" + (f".{key}" if key is not None else ""), cell


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A record from one line, or None if the line is not one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("probe"), str):
        return None
    step, time = record.get("step"), record.get("time", 0.0)
    if type(step) is not int or step < 0 or isinstance(time, bool) or not isinstance(time, int | float):
        return None
    if isinstance(record.get("error"), str):
        return {"step": step, "time": float(time), "probe": record["probe"], "error": record["error"], "values": {}}
    values = record.get("values")
    if not isinstance(values, dict) or not all(_is_value(value) for value in values.values()):
        return None
    return {"step": step, "time": float(time), "probe": record["probe"], "error": None, "values": decode(values)}


def _is_value(value: Any, depth: int = 0) -> bool:
    if isinstance(value, int | float | str) or value is None:
        return True
    if depth >= 2:
        return False
    if isinstance(value, list):
        return all(_is_value(each, depth + 1) for each in value)
    return isinstance(value, dict) and all(_is_value(each, depth + 1) for each in value.values())
