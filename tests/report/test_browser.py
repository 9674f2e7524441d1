"""The page in a real browser: drawn, quiet, within its width, and usable from the keyboard."""

from __future__ import annotations

from pathlib import Path

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


def test_the_loss_is_there_before_a_script_has_run(browser, full, small_run, tmp_path):
    """A still picture as wide as its box, which the drawn chart replaces."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(write_report(small_run, tmp_path / "report.html").as_uri())
    line, plot = (page.locator(f"#loss-plot{each}").first.bounding_box() for each in (" path[stroke]", ""))
    assert line["width"] > 0.8 * plot["width"]
    assert line["height"] > 20
    assert page.locator(".still").count() == 1
    context.close()
    assert full.locator(".still").count() == 0


def test_a_browser_that_cannot_unpack_the_library_is_told(browser, small_run, tmp_path):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(write_report(small_run, tmp_path / "report.html").as_uri())
    assert (
        page.locator("#content > .absent").first.inner_text().startswith("The charts need a browser of 2023 or later")
    )
    assert page.locator("#loss figcaption").is_visible()


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


def test_several_runs_fit_too(several):
    page = several
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


TITLES = """() => {
    const found = [];
    for (const plot of document.querySelectorAll('.plot')) {
        const names = '.xtitle, .ytitle, .y2title, .y3title, .legend, .annotation, .colorbar';
        const boxes = [...plot.querySelectorAll(names)].map(each => each.getBoundingClientRect()).filter(r => r.width);
        const all = plot.getBoundingClientRect();
        boxes.forEach((a, at) => {
            if (a.left < all.left - 1 || a.right > all.right + 1 || a.top < all.top - 1 || a.bottom > all.bottom + 1)
                found.push([plot.id, 'outside']);
            for (const b of boxes.slice(at + 1))
                if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) found.push([plot.id, 'overlap']);
        });
    }
    return found;
}"""


@pytest.fixture(scope="module")
def several(open_report, full_run, small_run):
    return open_report(full_run, small_run)


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 2560, 1280])
def test_no_title_lies_over_another_or_outside_its_chart(full, width):
    full.set_viewport_size({"width": width, "height": 900})
    assert settles(full, lambda: undrawn(full) == [])
    assert settles(full, lambda: full.evaluate(TITLES) == []), full.evaluate(TITLES)
    columns = full.evaluate("getComputedStyle(document.querySelectorAll('.charts')[1]).gridTemplateColumns")
    assert len(columns.split()) == {400: 1, 1280: 2, 2560: 3}[width]
    full.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize(
    ("width", "texts"),
    [(1000, ["1", "2", "3", "5", "7, 9"]), (100, ["1–3", "5, 7, 9"]), (20, ["1–3, 5, 7, 9"])],
)
def test_marks_closer_than_their_labels_are_wide_share_one(full, width, texts):
    """Marks at 0, 5, 9, 60, 98 and 99 hundredths of the width; the last stand where a label would leave the chart."""
    marks = [{"x": x, "number": n, "run": 0, "said": "", "colour": "#000", "grave": 0} for n, x in
             {1: 0, 2: 5, 3: 9, 5: 60, 7: 98, 9: 99}.items()]  # fmt: skip
    found = full.evaluate("([marks, width]) => labels(marks, (x) => x * width / 100, width)", [marks, width])
    assert [each["text"] for each in found] == texts
    assert all(0 <= each["x"] <= 1 for each in found)


def test_numbers_of_findings_follow_the_axis(full):
    """Two findings at the first step, one that begins far behind the last measurement."""
    texts = "[...document.querySelectorAll('#sharpness-plot .annotation-text')].map(each => each.textContent)"
    assert settles(full, lambda: full.evaluate(texts) == ["4"])
    full.evaluate("Plotly.relayout('sharpness-plot', {'xaxis.range': [0, 50]})")
    assert settles(full, lambda: full.evaluate(texts) == [])
    full.evaluate("Plotly.relayout('sharpness-plot', {'xaxis.autorange': true})")
    assert settles(full, lambda: full.evaluate(texts) == ["4"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "scheme"), [("full", "light"), ("full", "dark"), ("nasty", "light"), ("several", "light")]
)
def test_axe_finds_nothing(kind, scheme, request):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = request.getfixturevalue(kind)
    page.emulate_media(color_scheme=scheme)
    assert settles(page, lambda: undrawn(page) == [])
    found = axe.Axe().run(page).response["violations"]
    page.emulate_media(color_scheme="light")
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def test_all_charts_over_steps_follow_what_is_asked_for(full):
    """Steps are epochs and seconds of the record; logarithms, and a mean that forgets; the loss before and after."""
    line = "(at) => { const [x, y] = ['x', 'y'].map(name => document.getElementById('loss-plot').data[at][name]); "
    line += "return [x, y]; }"
    steps, losses = full.evaluate(line, 0)
    full.select_option("#over", "epoch")
    epochs, same = full.evaluate(line, 0)
    assert same == losses
    assert epochs[-1] == pytest.approx(steps[-1] / 100 - 0.9)  # epochs of 100 steps, the first told at step 90 as 0
    full.select_option("#over", "step")
    full.select_option("#scale", "log")
    assert full.evaluate("document.getElementById('accuracy-plot').layout.yaxis.type") == "log"
    assert full.evaluate("document.getElementById('flow-plot').layout.yaxis.type") != "log"  # a map
    full.select_option("#scale", "")
    full.locator("#smoothing").fill("0.5")
    raw, smooth = full.evaluate(line, 0)[1], full.evaluate(line, 1)[1]
    assert raw == losses
    first, second = losses[:2]
    assert smooth[:2] == pytest.approx([first, (0.5 * first + second) / 1.5])
    full.locator("#smoothing").fill("0")
    assert full.evaluate(line, 0) == [steps, losses]


def test_what_is_pointed_at_is_shown_in_the_whole_section(full):
    full.locator("#gradients-plot").scroll_into_view_if_needed()
    box = full.locator("#gradients-plot .nsewdrag").first.bounding_box()
    full.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown = (
        "document.querySelectorAll('#accuracy-plot .hoverlayer .legend, #accuracy-plot .hoverlayer .hovertext').length"
    )
    assert settles(full, lambda: full.evaluate(shown) > 0)
    full.mouse.move(2, 2)


def test_every_figure_and_table_is_a_file_at_a_press(full, full_run):
    def saved(selector):
        with full.expect_download() as download:
            full.locator(selector).click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    name, table = saved("#sharpness button[data-table]")
    assert name == "sharpness.csv"
    header, *rows = table.decode().split("\r\n")
    assert header == "Step,Hessian,Gauss-Newton,limit"
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(full_run.series("sharpness", "hessian")[1], 1e-6)
    full.evaluate("document.querySelector('#alignment details').open = true")
    name, pairs = saved("#alignment details button[data-table]")
    assert (name, pairs.decode().split("\r\n")[1]) == ("alignment-2.csv", "3,200,-0.61")
    name, layers = saved("button[data-dom='layer-table']")
    assert name == "layer-table.csv"
    assert layers.decode().split("\r\n")[1].startswith("conv1.weight,,")
    name, image = saved("#loss button[data-kind='png']")
    assert (name, image[:8]) == ("loss.png", b"\x89PNG\r\n\x1a\n")
    name, drawing = saved("#loss button[data-kind='svg']")
    assert (name, drawing[:4]) == ("loss.svg", b"<svg")
    assert full.trouble == []


def test_on_paper_all_is_drawn_and_nothing_asks_to_be_pressed(open_report, small_run):
    page = open_report(small_run)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert undrawn(page) == []
    for hidden in ("#controls", "nav", ".exports"):
        assert not page.locator(hidden).first.is_visible()
    assert overflow(page) <= 0


def test_charts_are_as_high_as_what_stands_beside_them(full):
    height = "(key) => document.querySelector(`#${key}-plot .main-svg`).getBoundingClientRect().height"
    accuracy, beside = (full.evaluate(height, key) for key in ("accuracy", "sharpness"))  # 300 pixels, and 312
    assert accuracy == beside >= 300


def test_on_paper_colours_are_those_of_a_light_screen(open_report, small_run):
    page = open_report(small_run)
    ink = "getComputedStyle(document.querySelector('#loss-plot .xtick text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert settles(page, lambda: page.evaluate(ink) != light)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ink) == light
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) != light


def test_charts_follow_the_colour_scheme(full):
    ink = "getComputedStyle(document.querySelector('#loss-plot .xtick text')).fill"
    light = full.evaluate(ink)
    full.emulate_media(color_scheme="dark")
    assert settles(full, lambda: full.evaluate(ink) != light)
    full.emulate_media(color_scheme="light")
