"""``pullback gallery``: list the pages that recompute published figures, or run them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pullback._checks import input_error

ALL = "all"
_PAGE = re.compile(r"[a-z]+\d{4}_\w+\.py")


class Preset(StrEnum):
    """Size of the computation."""

    small = "small"
    full = "full"


def command(
    name: Annotated[str | None, typer.Argument(help='A page, or "all"; without it the pages are listed.')] = None,
    preset: Annotated[Preset, typer.Option(help="small takes under a minute a page, full what its page says.")] = (
        Preset.small
    ),
    out: Annotated[Path, typer.Option(help="Folder for the pages (HTML) and their numbers (JSON).")] = Path(
        "runs/gallery"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace pages that are already there.")] = False,
) -> None:
    """Recompute published figures and hold the numbers to the papers'. Exit code 1 if one does not hold."""
    pages = find_pages()
    if name is None:
        width = max(len(page) for page in pages)
        for page, script in pages.items():
            typer.echo(f"{page:{width}}  {title_of(script)}")
        return
    if name != ALL and name not in pages:
        listed = ", ".join(pages)
        raise input_error("gallery", f'a page among {listed}, or "all"', repr(name), "Run `pullback gallery`")
    chosen = list(pages) if name == ALL else [name]
    if not force:
        check_free(chosen, out)
    # Each page is a process of its own: its time is its own, and it is exactly what the script does by hand.
    options = ["--preset", preset.value, "--out", str(out), *(["--force"] if force else [])]
    failed, worst = [], 0
    for place, page in enumerate(chosen):
        if len(chosen) > 1:
            typer.echo(f"[{place + 1}/{len(chosen)}] {page}", err=True)
        done = subprocess.run([sys.executable, str(pages[page]), *options], check=False)
        if done.returncode in (2, 130):  # the call is wrong, or was stopped: so it is for the other pages
            raise typer.Exit(done.returncode)
        if done.returncode:
            failed.append(page)
            worst = max(worst, 1 if done.returncode == 1 else 3)
    if failed:
        typer.echo(f"gallery: {len(failed)} of {len(chosen)} pages failed: {', '.join(failed)}", err=True)
        raise typer.Exit(worst)


def find_pages() -> dict[str, Path]:
    """The scripts of the gallery by name.

    They lie beside the package: in ``gallery`` in a checkout, in ``pullback_gallery`` where a wheel was installed.
    """
    beside = Path(__file__).parents[2]
    for folder in (beside / "pullback_gallery", beside / "gallery"):
        pages = {path.stem: path for path in sorted(folder.glob("*.py")) if _PAGE.fullmatch(path.name)}
        if pages:
            return pages
    raise input_error("gallery", "the gallery's scripts beside the package", f"none in {beside}", "Install the wheel")


def title_of(script: Path) -> str:
    """The first line of a page's docstring, read without running it."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
    return text.split("\n")[0].rstrip(".")


def check_free(pages: list[str], out: Path) -> None:
    """Refuse to overwrite, before anything is computed."""
    for page in pages:
        for path in (out / f"{page}.html", out / f"{page}.json"):
            if path.exists():
                remedy = "Pass --force to replace it, or another --out"
                raise input_error("gallery", "a folder without these pages", str(path), remedy)
