"""A page as one file that needs no network and runs the two scripts it came with, no other.

A page is a template. Whatever a template shows is text, but for what templates made themselves and for our own scripts.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup

from pullback._checks import input_error
from pullback.charts.chart import Cell, Chart, Table
from pullback.charts.numbers import evenly
from pullback.charts.text import cell, clean, script_json

MOST_ROWS = 40
MOST_CELLS = 1000  # of a table on the page; but at least
FEWEST_ROWS = 8
MOST_CSV_ROWS = 2000  # of a table that no chart draws, as the page's own button writes it
PLOTLY = "plotly-cartesian.min.js"  # of npm's plotly.js-cartesian-dist-min: a third of what the Python package ships


@cache
def templates(home: str | Path) -> Environment:
    """The templates of a package or of a folder, beside those they build on: ``document.html`` and ``kit.html``."""
    own = FileSystemLoader(home) if isinstance(home, Path) else PackageLoader(home)
    made = Environment(
        loader=ChoiceLoader([own, PackageLoader("pullback.charts")]),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),  # and is then escaped
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"cell": cell, "thinned": thinned}
    return made


def thinned(table: Table) -> tuple[str, list[list[Cell]]]:
    """Caption and rows of a table as a page shows it: at most 40 rows, fewer of a wide one, evenly chosen."""
    kept = evenly(len(table.rows), max(FEWEST_ROWS, min(MOST_ROWS, MOST_CELLS // max(1, len(table.header)))))
    said = f" ({len(kept)} of {len(table.rows):,} rows)" if len(kept) < len(table.rows) else ""
    return table.caption + said, [table.rows[place] for place in kept]


def document_html(
    home: str | Path, template: str, charts: Iterable[Chart], *, live: str | None = None, **shown: Any
) -> str:
    """A whole page as text.

    Args:
        home: the package whose folder ``templates`` holds the page's template, or a folder that holds it.
        template: its name; it extends ``document.html``, whose main part has the id ``content``.
        charts: the charts whose boxes (``kit.charts``) stand on the page.
        live: the page's version, of one that is served and asks its own address what is new: its scripts are then
            ``served_scripts``. None of a file.
        **shown: what the template asks for.
    """
    figures = script_json({chart.key: _of_chart(chart) for chart in charts})
    page = templates(home).get_template(template)
    return page.render(
        style=Markup(_resource("style.css")),
        allowed=_digests(),  # the content policy: these scripts run, and nothing is fetched
        figures=Markup(figures) if live is not None else packed(figures),
        library=_packed_library() if live is None and figures != "{}" else "",
        script=Markup(scripts()[1]),
        live=live,
        sources=list(served_scripts()) if live is not None else [],
        **shown,
    )


def fragment_html(home: str | Path, template: str, **shown: Any) -> str:
    """A part of someone else's page as text, in looks of its own that leave the rest alone, and without a script."""
    return templates(home).get_template(template).render(style=Markup(_resource("notebook.css")), **shown)


def _of_chart(chart: Chart) -> dict[str, Any]:
    """What the page's script needs of a chart."""
    return chart.figure | {
        "frames": [asdict(frame) for frame in chart.frames],
        "tables": [_numbers_of(table) for table in chart.tables],
    }


def _numbers_of(table: Table) -> dict[str, Any]:
    """What the page makes the CSV file of a table from: its rows, or nothing where the lines drawn hold them."""
    if table.drawn:
        return {"header": table.header}
    kept = [table.rows[place] for place in evenly(len(table.rows), MOST_CSV_ROWS)]
    return {"header": table.header, "rows": [[_storable(each) for each in row] for row in kept]}


def _storable(value: Cell) -> Cell:
    """A cell as JSON has it, numbers to seven digits."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)


def framed(page: str) -> Markup:
    """A page as the value of a frame's ``srcdoc`` in single quotes: what would end it, or be read, is escaped."""
    return Markup(page.replace("&", "&amp;").replace("'", "&#39;"))


@cache
def served_scripts() -> dict[str, str]:
    """The scripts of pages that are served, by the names they have under ``/script/``, which change with them."""
    served = [*scripts(), _resource("live.js")]
    return {f"{hashlib.sha256(each.encode()).hexdigest()[:16]}.js": each for each in served}


def check_free(where: str, path: Path, remedy: str, *, overwrite: bool = False) -> None:
    """Refuse the path of a folder, and that of a file which is not to be replaced."""
    if path.is_dir():
        raise input_error(where, "the path of a file", "a folder", "Add a file name such as report.html")
    if path.exists() and not overwrite:
        raise input_error(where, "a path that is free", "an existing file", remedy)


def write_whole(text: str, path: Path) -> Path:
    """Write a file that appears under its name only once it is whole; its folder is made if need be.

    Raises:
        InputError: the file cannot be written there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    except OSError as error:
        got = error.strerror or str(error)
        raise input_error(str(path), "a file that can be written", got, "Choose another path") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return path


def _resource(name: str) -> str:
    """A text file that comes with this package."""
    return files("pullback.charts").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def scripts() -> tuple[str, str]:
    """Plotly and our own script, once a process: the first is 1.5 MB."""
    return _resource(PLOTLY), _resource("page.js")


@cache
def _digests() -> list[str]:
    """What the content policy knows the scripts by."""
    return [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts()]


def packed(text: str) -> str:
    """A text as a page's script unpacks it: zlib's stream in base64."""
    return base64.b64encode(zlib.compress(text.encode())).decode()


@cache
def _packed_library() -> str:
    """Plotly as the page of a file holds it: 0.66 MB instead of 1.5."""
    return packed(scripts()[0])
