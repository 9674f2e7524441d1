"""What mkdocs asks of this project: the pages that are made, and links as they are in the repository.

A page lies in ``docs``, or it is made here of what the repository has anyway: README, CHANGELOG, tables of benchmarks,
the stored runs of the gallery, public names. Links are written as the repository has them; they lead on there too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import gallery_pages
import reference_pages
from docstrings import inner_products, outside_code
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

# Files of the repository that are pages of the site, by where they stand there.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/studies/pathologies/README.md": "pathologies.md",
    "benchmarks/results/second_order.json": "results/second_order.json",
    "LICENSE": "LICENSE.txt",
}
HOME = {page: name for name, page in PAGES.items()}
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?://|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages that are made into the navigation, in place of their stars."""
    made = {"gallery/*": gallery_pages.names(ROOT), "reference/*": reference_pages.modules(ROOT)}
    for section in config.nav or []:
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [page for entry in entries for page in _starred(entry, made)]
    return config


def _starred(entry: Any, made: dict[str, dict[str, str]]) -> list[Any]:
    """An entry of the navigation, or the pages that its star stands for."""
    if not isinstance(entry, str) or entry not in made:
        return [entry]
    return [{title: entry.replace("*", f"{name}.md")} for name, title in made[entry].items()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    made = reference_pages.pages(ROOT) | gallery_pages.pages(ROOT)
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    files.append(File.generated(config, "assets/plotly.js", content=gallery_pages.plotly()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site; names in the gallery's table lead to their pages."""
    place = page.file.src_uri
    markdown = COMMENT.sub("", markdown)  # for the tests and for what writes pages, not for readers
    if place == "gallery.md":
        markdown = re.sub(r"^\| `(\w+)` \|", r"| [`\1`](gallery/\1.md) |", markdown, flags=re.MULTILINE)
    if place.startswith(("gallery/", "reference/")):
        return markdown  # made here, with tags that are meant
    return outside_code(markdown, lambda text: _relinked(inner_products(text), place))


def _relinked(text: str, place: str) -> str:
    """A piece of a page with its links as the site needs them."""
    home = posixpath.dirname(HOME.get(place, f"docs/{place}"))

    def link(found: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(home, found[1]))
        page = PAGES.get(there) or there.removeprefix("docs/")
        if there not in PAGES and not there.startswith("docs/"):
            return found[0]  # no page: the build says so
        return posixpath.relpath(page, posixpath.dirname(place) or ".") + (found[2] or "")

    return LINK.sub(link, text)
