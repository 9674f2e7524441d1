"""What the pages of ``pullback theory`` and ``pullback dynamics`` are made by, and what holds for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.charts_in import charts_in
from tests.command import run

DRAWN = "[...document.querySelectorAll('.plot')].map(each => each.querySelectorAll('.main-svg').length > 0)"


def made(group: str, kinds: Mapping[str, Sequence[str]], folder: Path) -> dict[str, tuple[Path, str]]:
    """A page of each kind, and what was printed."""
    found = {}
    for kind, options in kinds.items():
        done = run(group, kind, *options, "--out", folder / f"{kind}.html")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # progress is for terminals
        found[kind] = (folder / f"{kind}.html", done.stdout)
    return found


def charts_of(path: Path) -> dict[str, Any]:
    page = path.read_text(encoding="utf-8")
    return charts_in(page)


def one_file(path: Path, text: str, charts: list[str]) -> None:
    """The page stands alone, has these charts, and its place was printed, as plain text."""
    page = path.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)
    assert list(charts_of(path)) == charts
    assert f"Page: {path}" in text
    assert "\x1b[" not in text


def assert_drawn(open_page: Callable[..., Any], path: Path, charts: list[str], width: int) -> None:
    """In a browser every chart is there, nothing is wider than the window, and nothing is complained about."""
    window = open_page(path, width=width)
    assert window.trouble == []
    assert window.evaluate(DRAWN) == [True] * len(charts)
    assert window.evaluate("document.documentElement.scrollWidth") == width
    window.close()
