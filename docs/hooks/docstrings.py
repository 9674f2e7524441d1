"""Docstrings as Markdown: examples become code blocks, which ``>>>`` alone is not, and <a, b> does not become a tag."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?P=indent)(?! *$).*)*", re.MULTILINE)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
INNER = re.compile(r"<([A-Za-z][^<>]{0,80})>")


class Docstrings(griffe.Extension):
    """Changes the text of every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called with every function, class and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = outside_code(EXAMPLE.sub(_fenced, obj.docstring.value), inner_products)


def outside_code(text: str, change: Any) -> str:
    """A text with everything changed that is no code."""
    return "".join(piece if place % 2 else change(piece) for place, piece in enumerate(CODE.split(text)))


def inner_products(text: str) -> str:
    """Angle brackets around letters as brackets: Markdown takes <a, b> for a tag, and leaves it out."""
    return INNER.sub(r"⟨\1⟩", text)


def _fenced(found: re.Match[str]) -> str:
    indent = found["indent"]
    return f"{indent}```pycon\n{found[0]}\n{indent}```"
