"""What a page is: rows that hold or not, files, exit codes."""

from __future__ import annotations

import ast
import html
import json
import math
import re

import pytest
import torch

import pullback as pb
from pullback import measure
from pullback.charts.chart import Table
from pullback.cli.gallery import find_pages
from tests.gallery.conftest import GALLERY


@pytest.fixture
def page(load):
    return load("kit.page").Page("smith1999_topic", "A title.\n\nA claim, figure 1.\n\n    x = <y>\n\nAnd more.")


def build(page):
    """One row, one bound, one figure, one table."""
    from kit.charts import Curve, curves

    page.set(seed=0)
    page.row("number", 1.5, 1.5 + 1e-7, 1e-6, source="figure <1>")
    page.at_most("bound", 2, 1)
    page.facts("Facts", ("name", "value"), [["<b>", 1.0]])
    page.draw(curves("line", "Line", "Read it.", [Curve("a", [1, 2], [3, 4])], x="x", y="y"))


@pytest.mark.parametrize(
    ("here", "holds"), [(1.0, True), (1.01, True), (0.99, True), (1.011, False), (math.nan, False), (math.inf, False)]
)
def test_a_row_holds_within_its_tolerance(page, here, holds):
    page.row("absolute", 1.0, here, 0.01 + 1e-12)
    page.row("relative", 100.0, 100 * here, 0.01 + 1e-12, relative=True)
    assert [row.holds for row in page.rows] == [holds, holds]
    assert [row.verdict for row in page.rows] == ["holds" if holds else "FAILS"] * 2
    assert [row.tolerance for row in page.rows] == ["±0.01", "±0.01 relative"]


def test_bounds_and_exact_numbers(page):
    page.at_most("below", 1.0, 1.0)
    page.at_least("above", 1.0, 1.0)
    page.row("exact", 3, 3, 0)
    assert [row.holds for row in page.rows] == [True] * 3
    page.at_most("below", 1.0, math.nan)
    page.at_least("above", 1.0, math.nan)
    page.row("exact", 3, 3 + 1e-12, 0)
    assert [row.holds for row in page.rows[3:]] == [False] * 3
    assert page.rows[-1].tolerance == "exact"


def test_most_numbers_within_three_standard_errors(page):
    near = measure.Profile(torch.zeros(19), torch.ones(19))
    options = {"at_most": 3, "relative": False}
    for far in (2.9, 3.1):
        one = measure.Profile(torch.zeros(1), torch.ones(1))
        page.mostly("numbers", [(near, [-2.9] * 19), (one, [far])], **options)
    page.mostly("numbers", [(near, [3.1, 3.1, *[0.0] * 17])], **options)
    page.mostly("numbers", [(measure.Profile(torch.zeros(1), torch.full((1,), math.nan)), [0.0])], **options)
    assert [row.here for row in page.rows] == pytest.approx([1, 0.95, 17 / 19, 0])
    assert [row.holds for row in page.rows] == [True, True, False, False]


@pytest.mark.parametrize(("stderr", "holds"), [(0.0666, True), (0.0667, False), (math.nan, False), (math.inf, False)])
def test_standard_errors_that_are_too_wide_show_nothing(page, stderr, holds):
    """Just inside and just outside a tenth of 2, relative or not, for one number and for many; whatever is found."""
    page.measured("one", 2, 2, stderr, at_most=0.1)
    page.measured("negative", -2, -2, stderr, at_most=0.1)
    page.measured("absolute", 5, 5, stderr, at_most=0.2, relative=False)
    many = measure.Profile(torch.full((3,), 2.0), torch.tensor([0.0, stderr, 9.0]).nan_to_num(math.inf, math.inf))
    page.mostly("numbers", [(many, [2.0] * 3)], at_most=0.1)
    assert [row.holds for row in page.rows] == [holds] * 4
    assert page.rows[0].tolerance == f"±{3 * stderr:.2g}, at most 0.1 relative"
    assert page.rows[2].tolerance == f"±{3 * stderr:.2g}, at most 0.2"
    assert all(row.computed for row in page.rows)


@pytest.mark.parametrize(("value", "holds"), [(2.14, True), (2.16, False), (1.84, False)])
def test_within_three_standard_errors(page, value, holds):
    page.measured("one", 2, value, 0.05, at_most=0.1)
    page.measured("rounding", 2, 2 + (value - 2) * 1e-9, 0.0, at_most=0.1, floor=0.15e-9)
    assert [row.holds for row in page.rows] == [holds] * 2


def test_every_row_held_to_standard_errors_has_a_cap():
    """No page hands a standard error to ``row``, which would hold however wide it is."""
    pages = [path for path in GALLERY.glob("*.py") if re.fullmatch(r"[a-z]+\d{4}_\w+", path.stem)]
    assert {path.stem for path in pages} == set(find_pages())
    calls = [
        (path.stem, ast.unparse(node))
        for path in pages
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "row"
        if {"stderr", "error", "tolerance"} & {
            each.id if isinstance(each, ast.Name) else each.attr
            for part in [*node.args[3:], *(k.value for k in node.keywords)]
            for each in ast.walk(part)
            if isinstance(each, ast.Name | ast.Attribute)
        }
    ]  # fmt: skip
    assert not calls


@pytest.mark.parametrize(
    ("paper", "here", "within", "relative", "shown"),
    [
        (-0.5, -0.49989012345, 0.02, False, ("-0.5", "-0.4999")),
        (0, 0.0794489837889, 0.3, False, ("0", "0.0794")),
        (0.464402902448, 0.462460293749, 0.0053, False, ("0.4644", "0.4625")),
        (0.0240562567423, 0.0240558559633, 1e-4, True, ("0.0240563", "0.0240559")),
        (1.039182, 1.03918212345678, 5e-7, False, ("1.039182", "1.03918212")),
        (0, 3.33066907388e-16, 1e-12, False, ("0", "3.33e-16")),
        (1, 1.0, 0, False, ("1", "1")),
        (1, math.nan, 0.1, False, ("1", "nan")),
    ],
)
def test_numbers_show_the_digits_they_are_compared_in(page, load, paper, here, within, relative, shown):
    """Two more than what was allowed; a computed number beside it is as long."""
    page.row("one", paper, here, within, relative=relative, computed=True)
    (row,) = load("kit.record").as_record(page, load("kit.run").machine(), "0")["rows"]
    assert load("kit.record").cells(row)[1:3] == shown


def test_computed_numbers_stand_under_another_head_than_the_paper_s(page, load):
    page.row("printed", 1, 1, 0)
    page.row("two routes", 2, 2, 0, computed=True)
    page.measured("networks", 2, 2.01, 0.01, at_most=0.1)
    record = load("kit.record").as_record(page, load("kit.run").machine(), "0")
    lines = load("kit.record").table_text(record).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["quantity", "printed", "quantity", "two", "networks"]
    assert [line.split()[1] for line in lines if line.startswith("quantity")] == ["paper", "computed"]


SCRIPT = '''"""A page."""
import torch
def found(x):
    """What is found."""
    return 2 * x
def build(page):
    within = 3 * float(torch.ones(1))
    page.set(seed=0)
    value = found(page.pick(small=1.0, full=2.0))
    page.row("name", 2, value + 1, within, source="figure 1")
    page.draw(value)
'''


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("A page.", "Another page."), True),
        (("figure 1", "figure 2"), True),
        (('page.row("name", 2, value + 1, within', 'page.measured("n", 3, value + 1, 0.1, at_most=1'), True),
        (("3 * float", "4 * float"), True),
        (("    page.draw(value)\n", ""), True),
        (("value + 1", "value + 2"), False),
        (("2 * x", "3 * x"), False),
        (("full=2.0", "full=2.5"), False),
        (("small=1.0", "small=1.5"), True),
        (("import", "import math\nimport"), True),
    ],
)
def test_the_hash_is_of_what_makes_the_numbers(load, tmp_path, change, same):
    code_of = load("kit.code_hash").code_of
    (tmp_path / "a.py").write_text(SCRIPT)
    (tmp_path / "b.py").write_text(SCRIPT.replace(*change))
    assert SCRIPT.replace(*change) != SCRIPT
    assert (code_of(tmp_path / "a.py") == code_of(tmp_path / "b.py")) == same


def test_a_wrong_number_fails_its_page(page):
    page.row("first", 1.0, 1.0, 0)
    page.check()
    page.row("Rayleigh quotient", 1.3586808, 1.4, 5e-6)
    expected = "smith1999_topic: expected 1.3586808 (±5e-06) for 'Rayleigh quotient', got 1.4. Compare"
    with pytest.raises(pb.SelfCheckError, match=re.escape(expected)):
        page.check()


def test_what_is_not_reproduced_must_stay_so(page):
    page.row("orders of magnitude", 4, 3.5, 0.1, not_reproduced="they are 3.5")
    assert page.rows[0].verdict == "not reproduced"
    page.check()
    page.row("fine after all", 4, 4, 0.1, not_reproduced="of no reason")
    with pytest.raises(pb.SelfCheckError, match="expected no agreement for 'fine after all', got 4"):
        page.check()


def test_a_page_without_numbers_is_an_error(page):
    with pytest.raises(pb.SelfCheckError, match="expected at least one number to check, got none"):
        page.check()


def test_sizes(load):
    assert load("kit.page").Page("a", "t").pick(small=1, full=2) == 1
    assert load("kit.page").Page("a", "t", "full").pick(small=1, full=2) == 2


@pytest.fixture
def script(tmp_path, load, monkeypatch):
    """``run`` on the page above, as if it were a script of its own folder."""
    folder = tmp_path / "pages"
    folder.mkdir()
    path = folder / "smith1999_topic.py"
    path.write_text("# <script>\n")
    run = load("kit.run")
    monkeypatch.setattr(run.inspect, "getfile", lambda _: str(path))
    return lambda *arguments, made=build: run.run(made, list(arguments))


def test_writes_the_page_and_its_numbers(script, tmp_path, capsys):
    out = tmp_path / "out"
    script("--out", str(out))
    text = capsys.readouterr().out
    assert re.search(r"^number +1\.5 +1\.5000001 +±1e-06 +holds$", text, re.M)
    record = json.loads((out / "smith1999_topic.json").read_text())
    assert record["preset"] == "small"
    assert record["settings"] == {"seed": 0}
    assert {"torch", "numpy", "scipy", "pullback", "processor", "threads", "date"} <= set(record["machine"])
    assert [(row["quantity"], row["holds"]) for row in record["rows"]] == [("number", True), ("bound", True)]
    written = (out / "smith1999_topic.html").read_text()
    for shown in ("figure &lt;1&gt;", "&lt;b&gt;", "# &lt;script&gt;", "1.5000001", "small size", 'id="line"'):
        assert shown in written
    assert "<b>" not in written.split("<script")[0]
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", written)
    assert "stored run" not in written


def test_shows_the_stored_run_of_the_full_size(script, tmp_path):
    script("--preset", "full", "--store")
    assert json.loads((tmp_path / "pages/results/smith1999_topic.json").read_text())["preset"] == "full"
    script("--out", str(tmp_path / "out"))
    written = (tmp_path / "out/smith1999_topic.html").read_text()
    assert "The full size, from a stored run" in written
    assert 'id="full-line"' in written
    assert written.count("1.5000001") == 2


def test_every_text_of_a_record_is_text(load, tmp_path):
    """Names of rows, tables, settings and machines, the claim and the script, of the page's run and of a stored one."""
    (tmp_path / "script.py").write_text("# <u>script</u>")

    def pages(mark, code="a"):
        facts = ("processor", "cores", "threads", "python", "torch", "numpy", "scipy", "pullback", "date")
        row = {"paper": f"paper{mark}", "here": 1.0, "holds": True, "computed": False, "verdict": f"verdict{mark}"}
        row |= {"quantity": f"row{mark}", "tolerance": f"of{mark}", "not_reproduced": "", "source": f"source{mark}"}
        table = {"caption": f"caption{mark}", "header": [f"head{mark}"], "rows": [[f"cell{mark}"]]}
        known = {"settings": {f"set{mark}": {f"part{mark}": f"value{mark}"}}, "seconds": 1.0, "tables": [table]}
        machine = {name: f"{name}{mark}" for name in facts}
        record = {"title": f"title{mark}", "preset": "small", "code": code, "rows": [row, row | {"computed": True}]}
        record |= known | {"machine": machine, "charts": []}
        out = tmp_path / "page.html"
        text = f"claim{mark}\n\n    formula{mark}\n\n``code{mark}`` and `` alone"
        load("kit.html").write_page(record, text, record | {"code": "b"}, tmp_path / "script.py", out)
        return out.read_text(encoding="utf-8").split('<script type="application/json"')[0].partition("</style>")[2]

    mark = "<u on='1' \"2\">&amp;</u></pre>"
    page = pages(mark)
    assert re.findall("<u[ >]|&amp;amp;amp;", page) == []
    names = ["paper", "verdict", "row", "source", "caption", "head", "cell", "set", "part", "value", "title", "claim"]
    names += ["formula", "code", "processor", "date"]
    assert [name for name in names if f"{name}{mark}" not in html.unescape(page)] == []
    assert "<code>code&lt;u" in page
    assert "`` alone" in page
    assert page.count("an earlier version of the script") == 1
    tags = [re.findall(r"<(/?\w+)", text) for text in (page, pages(""))]
    assert tags[0] == tags[1]


def test_does_not_overwrite(script, tmp_path, capsys):
    script("--out", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        script("--out", str(tmp_path))
    assert stopped.value.code == 2
    assert "expected a folder without this page, got" in capsys.readouterr().err
    script("--out", str(tmp_path), "--force")


def test_a_failing_page_is_written_and_fails(script, tmp_path, capsys):
    def wrong(page):
        page.row("number", 1.5, math.nan, 1e-6)

    with pytest.raises(SystemExit) as stopped:
        script("--out", str(tmp_path), made=wrong)
    assert stopped.value.code == 1
    assert "expected 1.5 (±1e-06) for 'number', got nan" in capsys.readouterr().err
    assert "FAILS" in (tmp_path / "smith1999_topic.html").read_text()
    assert json.loads((tmp_path / "smith1999_topic.json").read_text())["rows"][0]["here"] == "nan"


def test_figures(load):
    charts = load("kit.charts")
    curve = charts.Curve
    drawn = charts.curves(
        "a",
        "A",
        "Read.",
        [curve("a", [1, 2], [1, math.nan]), curve("b", [1], [2], "points", stderr=[0.1]), curve("c", [1], [2], "dash")],
        x="x",
        y="y",
        log_x=True,
    )
    assert [trace["mode"] for trace in drawn.figure["data"]] == ["lines+markers", "markers", "lines"]
    assert drawn.figure["data"][0]["y"] == [1, None]
    assert drawn.figure["data"][1]["error_y"]["array"] == [0.1]
    assert drawn.figure["layout"]["xaxis"]["type"] == "log"
    assert len(drawn.tables[0].rows) == 4
    plain = charts.curves("a", "A", "Read.", [curve("a", [1, 2], [1, 2], "plain")], x="x", y="y")
    assert plain.figure["data"][0]["mode"] == "lines"
    pair = charts.beside("theory", [1], [2], [3], [0.1], "#000000")
    assert [(c.name, c.style, c.legend) for c in pair] == [
        ("theory", "plain", True),
        ("theory, networks", "points", False),
    ]
    slid = charts.slides([drawn, plain], ["first", "second"])
    assert [frame.visible for frame in slid.frames] == [[True] * 3 + [False], [False] * 3 + [True]]
    assert [trace["visible"] for trace in slid.figure["data"]] == slid.frames[-1].visible
    assert slid.frames[0].layout["xaxis"]["type"] == "log"
    assert "type" not in slid.frames[1].layout["xaxis"]
    assert len(slid.tables) == 2
    hill = charts.contours("b", "B", "Read.", ("x", [0, 1]), ("y", [0, 1]), ("z", [[0, 1], [2, 9]]), top=3)
    assert hill.figure["data"][0]["zmax"] == 3
    assert hill.tables[0].rows[-1] == [1, 1, 9]
    cells = charts.heat_map(
        "d",
        "D",
        "Read.",
        ("x", [1, 2, 4]),
        ("y", [1, 100]),
        ("z", [[0, 1, 2], [3, 4, 5]]),
        bounds=(0, 4),
        drawn=[curve("line", [1, 4], [2, 3]), curve("points", [1], [2], "points", legend=False)],
        log_y=True,
    )
    trace = cells.figure["data"][0]
    assert trace["x"] == [0.5, 1.5, 3, 5]
    assert trace["y"] == pytest.approx([0.1, 10, 1000])
    assert (trace["zmin"], trace["zmax"], cells.figure["data"][1]["name"]) == (0, 4, "line")
    assert [trace.get("showlegend", True) for trace in cells.figure["data"][1:]] == [True, False]
    assert cells.figure["layout"]["yaxis"]["range"] == pytest.approx([-1, 3])
    assert cells.tables[0].rows[-1] == [4, 100, 5]
    image = charts.matrix("c", "C", "Read.", [[1, -2], [0, 1]])
    assert (image.figure["data"][0]["zmin"], image.figure["data"][0]["zmax"]) == (-2, 2)
    assert isinstance(image.tables[0], Table)
