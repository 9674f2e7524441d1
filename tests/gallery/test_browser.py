"""Pages in a real browser: drawn, quiet, and within their width."""

from __future__ import annotations

from pathlib import Path

import pytest

DRAWN = "[...document.querySelectorAll('.plot')].map(each => each.querySelectorAll('.main-svg').length > 0)"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["grosse2021_gauss_newton", "grosse2021_matrices"])
def test_a_page_is_drawn(filled, load, open_page, tmp_path, name, width):
    """Lines, points, maps, and below them the charts of the stored run."""
    page, output = filled(name), load("kit.html")
    record = load("kit.record").as_record(page, load("kit.run").machine(), "0")
    script = Path(load(name).__file__)
    output.write_page(record, page.text, record, script, tmp_path / "page.html")
    window = open_page(tmp_path / "page.html", width)
    assert not window.trouble
    assert window.evaluate(DRAWN) == [True] * (2 * len(page.charts))
    assert window.evaluate("document.documentElement.scrollWidth") == width
    assert window.locator(".rows tbody tr").count() == 2 * len(page.rows)
    window.close()
