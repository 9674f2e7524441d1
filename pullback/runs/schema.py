"""The layout of a run folder, version 2, and what may stand in a record.

``run.json``        one object: schema, created, and whatever the writer knows about the run ("model", "settings", …)
``records.jsonl``   one object a line, only ever appended: {"step": 50, "time": 1.2, "probe": "kernel", "values": {…}}
                    A value is a number, a text, a flag, or a list or a dict of these. A probe that failed has
                    "error" in place of "values". A record of the probe "resume" at step s says that training went on
                    from there: what was recorded before it of later steps belongs to weights that were given up.
                    The first line may be {"follows": 3}: what was recorded before stands in the blocks 1 to 3.
``blocks``          earlier records of a long run, as columns, see ``runs.block_file``. Without any: version 1.
``arrays``          arrays, see ``runs.array_file``
``course.bin``      what was shown at every step, see ``runs.course``

JSON has no NaN and no infinity: they stand as the texts "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SCHEMA_VERSION = 2
WITHOUT_BLOCKS = 1  # the version that a run is of until its first block is made
META_FILE = "run.json"
RECORDS_FILE = "records.jsonl"
RESUME = "resume"
MOST_NUMBERS = 2**16  # of one value; more belongs into an array

_AS_THEY_ARE = {type(None), bool, str}
_SINGLE = {*_AS_THEY_ARE, float, int}
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """A value as JSON holds it: non-finite numbers spelled out; arrays, tensors and what is like a number as numbers.

    Args:
        value: numbers, texts, flags, paths, arrays, tensors, and dicts, lists, tuples and sets of them.
        other: what to make of anything else; without it that is an error.

    Raises:
        TypeError: of a type that is none of these.
        ValueError: an array of more than ``MOST_NUMBERS``.
        Exception: what a value raises when it is asked for its number.
    """
    kind, finite = type(value), math.isfinite
    if kind is float:  # most of all
        return value if finite(value) else _number(value)
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return _number(value)
    # numbers at once: lists and dicts of them are what most records are made of
    if kind is dict or isinstance(value, Mapping):
        return {
            key if type(key) is str else _key(key): each
            if type(each) is float and finite(each)
            else encode(each, other)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [each if type(each) is float and finite(each) else encode(each, other) for each in value]
    try:
        found = _plain(value)
    except Exception:
        if other is None:
            raise
        return other(value)
    return encode(found, other)


def _plain(value: Any) -> Any:
    """What a path, an array or an object like a number stands for."""
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if callable(getattr(value, "tolist", None)):  # of NumPy, torch and their kin, also where it is one number
        if (count := math.prod(value.shape)) > MOST_NUMBERS:
            message = f"an array of {count:,} numbers, where a record takes {MOST_NUMBERS:,}"
            raise ValueError(message)
        return value.tolist()
    if hasattr(type(value), "__float__"):
        return float(value)
    message = f"a value of type {type(value).__name__}, which is no number, text, list or dict of these"
    raise TypeError(message)


def _number(value: float) -> Any:
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return "Infinity" if value > 0 else "-Infinity"
    if not finite:
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return int(value) if isinstance(value, int) else float(value)


def encode_values(values: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What of a record's values it can hold, and of the rest why not, by name."""
    if not isinstance(values, Mapping):
        return {}, {"": f"values of type {type(values).__name__}, where a dict is needed"}
    kept: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for key, value in values.items():
        name = _key(key)
        try:
            found = encode(value)
        except Exception as error:
            refused[name] = in_words(error)
            continue
        if _is_value(found):
            kept[name] = found
        else:
            refused[name] = "lists or dicts within those of lists or dicts"
    return kept, refused


def _key(key: Any) -> str:
    return str(key) if isinstance(key, str) else in_words(key)


def in_words(value: Any) -> str:
    """Text of anything, also of what fails when it is asked for its text."""
    try:
        return str(value) or type(value).__name__
    except Exception:
        return f"an object of type {type(value).__name__}"


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
    if type(value) in _SINGLE or isinstance(value, int | float | str):
        return True
    if depth >= 2 or not isinstance(value, list | dict):
        return False
    each_of = value.values() if isinstance(value, dict) else value
    return {type(each) for each in each_of} <= _SINGLE or all(_is_value(each, depth + 1) for each in each_of)
