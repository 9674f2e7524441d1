"""Pages of the gallery: the numbers and figures of the stored run of the full size, and those of the small one.

The small one is computed while the site is built, or was before by the same code.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from small_runs import records


def names(root: Path) -> dict[str, str]:
    """Pages, with the short titles that the navigation has room for: "Poole 2016: transient chaos"."""
    return {path.stem: _short(path.stem) for path in _stored(root)}


def _short(name: str) -> str:
    paper, _, topic = name.partition("_")
    return f"{paper[:-4].capitalize()} {paper[-4:]}: {topic.replace('_', ' ')}"


def pages(root: Path) -> dict[str, str]:
    """Every page, by its place in the site."""
    with _gallery_first(root):
        from kit.code_hash import code_of  # the gallery's own, as is how many digits a number shows
        from kit.record import cells

        from pullback._text import duration

        small = records(root, [path.stem for path in _stored(root)])
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"inline": _inline, "cell": _cell, "duration": duration}
    template = made.get_template("gallery.md.jinja")
    found = {}
    for path in _stored(root):
        script = root / "gallery" / f"{path.stem}.py"
        text = script.read_text(encoding="utf-8")
        run = _shown(path)
        found[f"gallery/{path.stem}.md"] = template.render(
            run=run,
            same_script=run["code"] == code_of(script),
            small=small[path.stem],
            small_rows=[(row, cells(row)) for row in small[path.stem]["rows"]],
            paragraphs=inspect.cleandoc(ast.get_docstring(ast.parse(text)) or "").split("\n\n")[1:],
            tables=[
                (word, [(row, cells(row)) for row in run["rows"] if row["computed"] == computed])
                for word, computed in (("paper", False), ("computed", True))
            ],
            script=text,
            figure=lambda chart: Markup(
                json.dumps(chart["figure"] | {"frames": chart["frames"]}, ensure_ascii=False).replace("<", "\\u003c")
            ),
        )
    return found


@contextmanager
def _gallery_first(root: Path) -> Iterator[None]:
    """Scripts of the gallery find what they share beside themselves."""
    sys.path.insert(0, str(root / "gallery"))
    try:
        yield
    finally:
        sys.path.remove(str(root / "gallery"))


def plotly() -> str:
    """The chart library, which comes with the site."""
    return get_plotlyjs()


def _stored(root: Path) -> list[Path]:
    return sorted((root / "gallery" / "results").glob("*.json"))


def _shown(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _inline(text: str) -> Markup:
    """Prose with its ``code``."""
    pieces = text.split("``")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if place % 2 else Markup("{}").format(piece)
        for place, piece in enumerate(pieces)
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
