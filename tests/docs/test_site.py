"""The site as `make docs` builds it: strict, whole, and with nothing that is fetched from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pullback as pb
from tests.command import HANGS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TAGS = set(
    re.findall(
        r"\w+",
        """html head meta link title style script body div span p a h1 h2 h3 h4 h5 h6 ul ol li dl dt dd table caption
        thead tbody tr th td pre code em strong small del sup sub br hr img svg path input label form button nav header
        main article footer aside section details summary blockquote noscript mark output kbd""",
    )
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, small_runs: Path) -> Path:
    """The built site; a link that leads nowhere, or a name that is not found, ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    own = {"NO_MKDOCS_2_WARNING": "1", "PULLBACK_SMALL_RUNS": str(small_runs)}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_public_name_has_its_entry(site: Path) -> None:
    """Of the stub, and of the modules that are public themselves."""
    listed = (site / "reference" / "index.html").read_text(encoding="utf-8")
    entries = {
        name: set(re.findall(r'id="(pullback\.[\w.]+)"', page))
        for name, page in pages(site).items()
        if name.startswith("reference/")
    }
    missing = []
    for name in pb.__all__:
        link = re.search(rf'<a href="(\w+\.html)(?:#([\w.]+))?"><code>{name}</code>', listed)
        if link is None or (link[2] and link[2] not in entries[f"reference/{link[1]}"]):
            missing.append(name)
        module = getattr(pb, name)
        if not hasattr(module, "__path__"):
            continue
        there = entries[f"reference/{name}.html"]
        missing += [each for each in module.__all__ if f"pullback.{name}.{each}" not in there]
    assert not missing


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for name, page in pages(site).items():
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"([^\"]+)", page)
        loaded += re.findall(r"<link[^>]+rel=\"(?:stylesheet|icon|preload|preconnect)\"[^>]+href=\"([^\"]+)", page)
        loaded += re.findall(r"<link[^>]+href=\"([^\"]+)\"[^>]+rel=\"(?:stylesheet|icon|preload|preconnect)\"", page)
        assert loaded
        assert not [each for each in loaded if re.match(r"(https?:)?//", each)], name
        for each in loaded:
            assert each.startswith("data:") or (site / name).parent.joinpath(each).exists() or name == "404.html", each
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_gallery_shows_every_stored_run(site: Path) -> None:
    for path in (ROOT / "gallery" / "results").glob("*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        page = (site / "gallery" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count('<div class="chart"') == len(run["charts"])
        full, small = page.split("<summary>Numbers of the small run</summary>")
        full, small = full + small.partition("</details>")[2], small.partition("</details>")[0]
        assert len(re.findall(r'<td class="(?:holds|open|fails)">', full)) == len(run["rows"])
        (said,) = re.findall(r"computed at its small size: all its (\d+) numbers are as stated", full)
        assert len(re.findall(r'<td class="(?:holds|open)">', small)) == int(said) > 0
        assert 'class="fails"' not in small
        drawn = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)]
        assert [each["data"] for each in drawn] == [chart["figure"]["data"] for chart in run["charts"]]


def test_every_tag_is_one_of_html(site: Path) -> None:
    """And none was made of an inner product, <a, b>, which would then not be read."""
    for name, page in pages(site).items():
        text = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
        found = set(re.findall(r"<([A-Za-z][\w-]*)", text)) | set(re.findall(r"<([A-Za-z]\w*[^\w\s>/-])", text))
        assert not found - TAGS, name
    assert "⟨g_i, g_j⟩" in (site / "reference" / "kernels.html").read_text(encoding="utf-8")


def test_examples_of_docstrings_are_code(site: Path) -> None:
    """And not quotes in quotes, which is what Markdown makes of ``>>>``."""
    for name, page in pages(site).items():
        assert not re.search(r"<blockquote>\s*<blockquote>", page), name
    assert '<span class="gp">&gt;&gt;&gt; </span>' in (site / "reference" / "kernels.html").read_text(encoding="utf-8")
