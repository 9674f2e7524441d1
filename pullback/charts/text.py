"""Turns what a run holds into text that is safe to show: escaping, shortening, and numbers for readers.

Everything in a run is untrusted. A name is escaped by the templates on its way into HTML, goes through
``plotly_text`` on its way into a chart (Plotly reads a subset of HTML in labels), and through
``script_json`` on its way into a script.
"""

from __future__ import annotations

import html
import json
import math
import re
from functools import cache
from typing import Any

from pullback import _text

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SCRIPT_ESCAPES = {mark: f"\\u{ord(mark):04x}" for mark in "<>&\u2028\u2029"}


def clean(value: object) -> str:
    """Text without control characters or lone surrogates, which no HTML file can hold."""
    text = str(value)
    return text if text.isprintable() else _CONTROL.sub("\ufffd", text)


def shorten(value: object, limit: int) -> str:
    """Text of at most ``limit`` characters; the middle gives way, since names differ at their ends."""
    text = clean(value)
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return text[:head] + "…" + text[len(text) - (limit - 1 - head) :]


def plotly_text(value: object, limit: int = 30) -> str:
    """Text for a label of a chart, shown literally. Plotly knows no entity for quotes, and needs none."""
    return html.escape(shorten(value, limit), quote=False)


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for mark, escape in _SCRIPT_ESCAPES.items():  # a tenth of what going through megabytes letter by letter takes
        text = text.replace(mark, escape)
    return text


def as_float(value: object) -> float:
    """A stored value as a float; NaN if it is not a number."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_dict(value: object) -> dict[str, Any]:
    """A stored value if it is a dict, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


@cache
def superscript(exponent: int) -> str:
    """An exponent in raised digits."""
    return str(exponent).translate(_SUPERSCRIPTS)


def number(value: object, digits: int = 4) -> str:
    """A number to ``digits`` significant digits: ``0.02512``, ``101,770``, ``3.1×10⁻⁷``, ``NaN``."""
    as_given = as_float(value)
    if math.isnan(as_given):
        return "NaN"
    if math.isinf(as_given):
        return "∞" if as_given > 0 else "−∞"
    if as_given == int(as_given) and abs(as_given) < 1e7:
        return f"{int(as_given):,}".replace("-", "−")
    size = abs(as_given)
    if 1e-3 <= size < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{as_given:,.{places}f}"
        return (text.rstrip("0").rstrip(".") if places else text).replace("-", "−")
    mantissa, exponent = f"{as_given:.{digits - 1}e}".split("e")
    return mantissa.rstrip("0").rstrip(".").replace("-", "−") + "×10" + superscript(int(exponent))


def counted(count: int, noun: str) -> str:
    """A count with its noun: ``1 step``, ``2,000 steps``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(value: object) -> str:
    """A stored fraction as a percentage."""
    return _text.percent(as_float(value))


def cell(value: object) -> str:
    """One cell of a table; empty for what was not measured."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return number(value, 4)
