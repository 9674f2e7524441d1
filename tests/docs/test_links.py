"""Every link of a page leads to a file, and to a heading of it, in the repository as on the site."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.executed import ROOT, SOURCES

LINK = re.compile(r"(?<!\\)\]\((?P<place>[^)\s#]*)(?:#(?P<heading>[^)\s]+))?\)")
READ = [*SOURCES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]


def without_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```|^ {4}.*?$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def headings(page: Path) -> set[str]:
    """Headings as links name them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in found}


def test_links_lead_somewhere() -> None:
    seen = 0
    for page in READ:
        for link in LINK.finditer(without_code(page)):
            if link["place"].startswith(("http://", "https://", "mailto:")):
                continue
            there = page.parent / link["place"] if link["place"] else page
            assert there.exists(), f"{page.name}: {link[0]}"
            assert there.resolve().is_relative_to(ROOT), f"{page.name}: {link[0]}"
            if link["heading"]:
                assert link["heading"] in headings(there), f"{page.name}: {link[0]}"
            seen += 1
    assert seen >= 80
