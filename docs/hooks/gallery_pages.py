"""Pages of the gallery, from its stored runs: the numbers as they were computed at full size, and the figures."""

from __future__ import annotations

import ast
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def names(root: Path) -> dict[str, str]:
    """Pages, with the short titles that the navigation has room for: "Poole 2016: transient chaos"."""
    return {path.stem: _short(path.stem) for path in _stored(root)}


def _short(name: str) -> str:
    paper, _, topic = name.partition("_")
    return f"{paper[:-4].capitalize()} {paper[-4:]}: {topic.replace('_', ' ')}"


def pages(root: Path) -> dict[str, str]:
    """Every page, by its place in the site."""
    sys.path.insert(0, str(root / "gallery"))
    try:
        from kit.record import cells  # the gallery's own: how many digits a number shows
    finally:
        sys.path.remove(str(root / "gallery"))
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"inline": _inline, "cell": _cell}
    template = made.get_template("gallery.md.jinja")
    found = {}
    for path in _stored(root):
        script = root / "gallery" / f"{path.stem}.py"
        text = script.read_text(encoding="utf-8")
        run = _shown(path)
        found[f"gallery/{path.stem}.md"] = template.render(
            run=run,
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
