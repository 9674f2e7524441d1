"""Templates: all they show is text, in every place of every page, and no page can do without what it asks for."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from pullback.charts.chart import Chart, Frame, Table
from pullback.charts.document import document_html, templates
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage, write_theory_page

ROOT = Path(__file__).parents[2]
FILES = sorted((*(ROOT / "pullback").rglob("*.html"), *(ROOT / "gallery").rglob("*.html")))
MARK = "<b on{0}='1' \"2\">&amp;{0}</b></script></title></pre>\x07"
SEEN = MARK.replace("\x07", "\ufffd")


class Read(HTMLParser):
    """Tags and names of attributes, and all that is text or value of one; scripts and styles apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.shape: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self.raw = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.shape.append((tag, *(name for name, _ in attrs)))
        self.said += [value for _, value in attrs if value]
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        if not self.raw:
            self.said.append(data)

    def shows(self, name: str) -> bool:
        return any(SEEN.format(name) in each for each in self.said)


def chart_of(say: Any) -> Chart:
    """One with a text in every place that takes one."""
    table = Table(say("caption"), (say("column"), "b"), [[say("first"), say("cell")], [1, None]])
    frames = (Frame(say("frame"), [True], {}),)
    figure = {"data": [], "layout": {"height": 300}}
    return Chart(say("key"), say("title"), say("reading"), (say("summary"),), figure, (table,), frames)


def theory_page(say: Any) -> TheoryPage:
    line = Line.by_layer(say("line"), [1.0, 0.5], [1.0, 0.5], [0.0, 0.1])
    keys = ((say("label"), say("value"), say("note")), ("number", 0.5, ""))
    shown = (say("page"), (say("fact"),), keys, say("place"), (line,), (chart_of(say),), say("found"), say("group"))
    return TheoryPage(*shown)


def test_whatever_a_template_shows_is_text(tmp_path):
    (tmp_path / "a.html").write_text('<p class="{{ value }}">{{ value }}{{ "n: " ~ value }}{{ [value] | join }}</p>')
    page = Read(templates(tmp_path).get_template("a.html").render(value=MARK))
    assert page.shape == [("p", "class")]
    assert page.said[0] == SEEN
    assert "".join(page.said[1:]) == SEEN + "n: " + SEEN + SEEN
    lone = templates(tmp_path).get_template("a.html").render(value="\ud800")
    assert lone.encode("utf-8").count(b"\xef\xbf\xbd") == 4


def test_what_a_template_asks_for_must_be_there(tmp_path):
    (tmp_path / "a.html").write_text("{{ name }}{{ thing.name }}")
    page = templates(tmp_path).get_template("a.html")
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        page.render(thing=Frame("", [], {}))
    with pytest.raises(jinja2.UndefinedError, match="has no attribute 'name'"):
        page.render(name="", thing=Frame("", [], {}))
    (tmp_path / "b.html").write_text('{% extends "document.html" %}{% block title %}{% endblock %}')
    with pytest.raises(jinja2.TemplateRuntimeError, match="Required block 'skip_to' not found"):
        document_html(tmp_path, "b.html", [])


def test_templates_leave_no_way_round():
    """None turns escaping off or writes a value outside quotes, and one place of the code alone makes markup."""
    names = {
        "document.html",
        "kit.html",
        "page.html",
        "run.html",
        "runs.html",
        "still.html",
        "theory.html",
        "view.html",
    }
    assert {path.name for path in FILES} == names
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape|=\s*\{\{|(?:href|src)=\"\{\{|\bon\w+=", text), path
        assert not re.search(r"<(?:script|style)[^>]*>(?!\{\{ [\w\[\]]+ \}\}<|</script>)", text), path
    code = [path for folder in ("pullback", "gallery") for path in (ROOT / folder).rglob("*.py")]
    made = {path.name for path in code if re.search(r"\bMarkup\b|markupsafe", path.read_text(encoding="utf-8"))}
    assert made == {"document.py"}


@pytest.mark.parametrize("home", ["pullback.report", ROOT / "gallery/kit"])
def test_every_page_is_made_in_one_environment(home):
    made = templates(home)
    assert templates(home) is made
    assert made.autoescape is True
    assert made.undefined is jinja2.StrictUndefined


def test_every_text_of_a_page_of_theory_is_text(tmp_path):
    names: set[str] = set()

    def nasty(name: str) -> str:
        names.add(name)
        return MARK.format(name)

    page, plain = theory_page(nasty), theory_page(str)
    seen, before = (Read(write_theory_page(p, tmp_path / "a.html").read_text(encoding="utf-8")) for p in (page, plain))
    assert seen.shape == before.shape
    assert [name for name in sorted(names) if not seen.shows(name)] == []
    bare = replace(plain, lines=(), charts=())
    assert "numbers-title" not in write_theory_page(bare, tmp_path / "a.html").read_text(encoding="utf-8")
