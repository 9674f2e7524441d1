"""The page in a real browser: drawn, quiet, within its width, and usable from the keyboard."""

from __future__ import annotations

import pytest

from pullback.report import write_report

SCRIPT = "<script>alert(1)</script>"

FITTED = """[...document.querySelectorAll('.main-svg')]
    .every(each => each.getBoundingClientRect().right <= innerWidth)"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def open_report(open_page, tmp_path_factory):
    """Opens the report of some runs."""

    def opened(*runs):
        return open_page(write_report(list(runs), tmp_path_factory.mktemp("page") / "report.html"), wait_ms=200)

    return opened


@pytest.fixture(scope="module")
def full(open_report, full_run):
    return open_report(full_run)


@pytest.fixture(scope="module")
def nasty(open_report, nasty_run):
    return open_report(nasty_run)


def undrawn(page):
    """Ids of the charts that Plotly did not draw."""
    return page.locator(".plot:not(:has(.main-svg))").evaluate_all("all => all.map(each => each.id)")


def map_drawn(page):
    """The cosine map as the data URL of its image."""
    image = page.locator("#cosine-plot .heatmaplayer image").first
    return image.evaluate("each => each.href.baseVal")


def settles(page, holds):
    """Whether the page comes to a state; on a busy machine that takes a while."""
    for _ in range(200):
        if holds():
            return True
        page.wait_for_timeout(50)
    return False


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("kind", ["full", "nasty"])
def test_every_chart_is_drawn_without_a_complaint(kind, request):
    page = request.getfixturevalue(kind)
    assert page.locator(".plot").count() >= 11
    assert settles(page, lambda: undrawn(page) == [])
    assert page.trouble == []


def test_the_page_would_notice_a_script_that_does_not_belong(open_report, empty_run):
    page = open_report(empty_run)
    assert page.trouble == []
    page.evaluate("""() => {
        const added = document.createElement("script");
        added.textContent = "window.ran = 1";
        document.body.append(added);
    }""")
    page.wait_for_timeout(50)
    assert page.evaluate("window.ran") is None
    assert "Content Security Policy" in page.trouble[0]


@pytest.mark.parametrize("kind", ["full", "nasty"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(kind, width, request):
    page = request.getfixturevalue(kind)
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert settles(page, lambda: overflow(page) <= 0)
    assert settles(page, lambda: page.evaluate(FITTED))  # charts follow the window after a moment
    assert page.locator(".main-svg").count() >= 11
    columns = page.evaluate("getComputedStyle(document.querySelector('.charts')).gridTemplateColumns")
    assert len(columns.split()) == (2 if width == 1280 else 1)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_several_runs_fit_too(open_report, full_run, small_run):
    page = open_report(full_run, small_run)
    assert settles(page, lambda: undrawn(page) == [])
    page.set_viewport_size({"width": 400, "height": 900})
    assert settles(page, lambda: overflow(page) <= 0)
    assert page.trouble == []


def test_names_show_as_they_are(nasty):
    assert SCRIPT in nasty.locator("#share-plot .legendtext").all_text_contents()
    assert any(text.startswith('<b>"bold"') for text in nasty.locator("#share-plot text").all_text_contents())
    assert SCRIPT in nasty.locator("#findings").inner_text()
    assert nasty.locator("main b, main img, main a:not([href^='#']), svg a").count() == 0


def test_tables_and_slider_are_reached_by_the_keyboard(full):
    full.locator("#loss summary").evaluate("each => each.blur()")
    reached = []
    for _ in range(60):
        full.keyboard.press("Tab")
        reached.append(
            full.evaluate("(document.activeElement.closest('figure')?.id || '') + document.activeElement.tagName")
        )
        if reached[-1] == "cosineINPUT":
            break
    assert "lossSUMMARY" in reached
    assert reached[-1] == "cosineINPUT"
    before = map_drawn(full)
    full.keyboard.press("ArrowLeft")
    assert full.locator("#cosine output").inner_text() == "step 390"
    assert settles(full, lambda: map_drawn(full) != before)
    full.locator("#loss summary").focus()
    full.keyboard.press("Enter")
    assert full.locator("#loss table").is_visible()


def test_charts_follow_the_colour_scheme(full):
    ink = "getComputedStyle(document.querySelector('#loss-plot .xtick text')).fill"
    light = full.evaluate(ink)
    full.emulate_media(color_scheme="dark")
    assert settles(full, lambda: full.evaluate(ink) != light)
    full.emulate_media(color_scheme="light")
