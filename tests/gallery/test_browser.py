"""Pages in a real browser: drawn, quiet, and within their width."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

BROWSER = os.environ.get("PULLBACK_CHROMIUM") or shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DRAWN = "[...document.querySelectorAll('.plot')].map(each => each.querySelectorAll('.main-svg').length > 0)"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no Chromium: set PULLBACK_CHROMIUM or install one"),
]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield started
        started.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["grosse2021_gauss_newton", "grosse2021_matrices"])
def test_a_page_is_drawn(filled, load, browser, tmp_path, name, width):
    """Lines, points, maps, and below them the charts of the stored run."""
    page, output = filled(name), load("output")
    record = output.as_record(page, load("page").machine())
    script = Path(load(name).__file__)
    output.write_page(page, record, record, script, tmp_path / "page.html")
    window = browser.new_page(viewport={"width": width, "height": 900})
    trouble = []
    window.on("console", lambda message: trouble.append(message.text))
    window.on("pageerror", lambda error: trouble.append(str(error)))
    window.on("request", lambda request: trouble.append(request.url) if "http" in request.url else None)
    window.goto((tmp_path / "page.html").as_uri())
    window.wait_for_timeout(300)
    assert not trouble
    assert window.evaluate(DRAWN) == [True] * (2 * len(page.charts))
    assert window.evaluate("document.documentElement.scrollWidth") == width
    assert window.locator(".rows tbody tr").count() == 2 * len(page.rows)
    window.close()
