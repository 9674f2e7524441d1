"""The page as text: complete, self-contained, and free of anything that a run could smuggle in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pullback as pb
from pullback._checks import InputError
from pullback.report import write_report
from pullback.report.run.header import facts_of
from pullback.report.run.notes import damage_of, findings_of, left_out
from pullback.report.run.page import page_html
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import NamedRun, name_runs
from pullback.report.run.tiles import key_numbers
from pullback.runs import Record, Run, RunWriter, load_run
from tests.command import HANGS

SCRIPT = "<script>alert(1)</script>"


def test_what_measuring_took_in_all_in_share_and_each(tmp_path):
    """Measurements of 1 and 3 seconds in a run of 40."""
    run_of_costs = [
        {"step": 1, "time": 10.0, "probe": "cost", "values": {"seconds": 1.0}},
        {"step": 2, "time": 40.0, "probe": "cost", "values": {"seconds": 3.0}},
    ]
    (tmp_path / "run.json").write_text('{"schema": 1}')
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in run_of_costs))
    shown = {each.label: (each.value, each.note) for each in key_numbers(name_runs([load_run(tmp_path)])[0])}
    assert shown["Time to watch"] == ("4.0 s", "10% of the run, 2.0 s a measurement")


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = self.style = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def texts_of(value, key=""):
    """All texts of a JSON value, with the nearest key above each."""
    if isinstance(value, dict):
        return [found for name, each in value.items() for found in texts_of(each, name)]
    if isinstance(value, list):
        return [found for each in value for found in texts_of(each, key)]
    return [(key, value)] if isinstance(value, str) else []


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    def written(*runs, **options):
        return write_report(list(runs), tmp_path_factory.mktemp("page") / "report.html", **options)

    return written


@pytest.fixture(scope="module")
def full(write, full_run):
    return Page(write(full_run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nasty(write, nasty_run):
    return Page(write(nasty_run).read_text(encoding="utf-8"))


def test_every_chart_has_heading_sentence_numbers_and_table(full, full_run):
    figures = {each["id"]: each for each in full.all("figure")}
    ids = Counter(attributes["id"] for _, attributes in full.tags if attributes.get("id"))
    assert max(ids.values()) == 1
    made = [chart for section in SECTIONS for chart in charts_of(section, name_runs([full_run]))[0]]
    assert list(figures) == [chart.key for chart in made]
    for chart in made:
        assert figures[chart.key]["aria-labelledby"] in ids
        assert figures[chart.key]["aria-describedby"] in ids
        for said in (chart.title, chart.reading, *chart.summary, *(table.caption for table in chart.tables)):
            assert said in full.text
    assert len(full.all("details")) == len(made) + 1  # and the settings
    assert len(full.all("table")) >= len(made)


def test_long_tables_are_thinned_and_say_so(write, tmp_path):
    with RunWriter(tmp_path / "long", {}) as writer:
        for step in range(500):
            writer.append(step, "loss", {"loss": 1.0})
    page = Page(write(load_run(tmp_path / "long")).read_text(encoding="utf-8"))
    assert "(40 of 500 rows)" in page.text
    assert len(page.all("tr")) == 41


def test_the_head_shows_the_run_and_its_key_numbers(full):
    for said in ("ConvNet", "101,770 parameters", "SGD, learning rate 0.05", "CrossEntropyLoss"):
        assert said in full.text
    assert re.search(r"Test accuracy95\.\d%", full.text)
    assert re.search(r"Sharpness4\d\.\d\d?\s+look10\d(\.\d)?% of the limit 40", full.text)
    assert [attributes["lang"] for attributes in full.all("html")] == ["en"]


def test_the_head_shows_what_watching_took():
    """Two measurements of 0.5 and 1.5 seconds, in a run of 10."""
    records = [Record(step, time, "cost", {"seconds": cost}) for step, time, cost in ((5, 4.0, 0.5), (9, 9.0, 1.5))]
    run = Run(Path("r"), {}, (*records, Record(9, 10.0, "loss", {"loss": 1.0})))
    numbers = {each.label: (each.value, each.note) for each in key_numbers(NamedRun("r", run))}
    assert numbers["Time to watch"] == ("2.0 s", "20% of the run, 1.0 s a measurement")


def test_what_the_loop_logged_is_no_measurement():
    """Two measurements, and an epoch's mean at every step; records without costs are counted as they are."""
    logged = tuple(Record(step, 1.0, "epoch", {"train_loss": 1.0}) for step in range(1, 1001))
    measured = tuple(Record(step, 1.0, probe, {"x": 1.0}) for step in (4, 8) for probe in ("loss", "cost"))
    assert "measured at 2 steps, 4 to 8" in facts_of(NamedRun("r", Run(Path("r"), {}, (*logged, *measured))))
    assert "measured at 1,000 steps, 1 to 1,000" in facts_of(NamedRun("r", Run(Path("r"), {}, logged)))
    assert "no measurement" in facts_of(NamedRun("r", Run(Path("r"), {}, ())))


def test_the_final_loss_is_the_loop_s_own_last_one(tmp_path):
    def shown(run):
        return {each.label: (each.value, each.note) for each in key_numbers(NamedRun("r", run))}["Final loss"]

    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(200, "loss", {"loss": 1.5})
        for step in range(1, 1501):
            writer.course.add(step, {"loss": 3.0 - step / 1000})
    run = load_run(tmp_path / "run")
    assert shown(run) == ("1.5", "of the batch of step 1,500")
    assert shown(run.until(1000)) == ("2", "of the batch of step 1,000")
    assert shown(Run(Path("r"), {}, run.records)) == ("1.5", "on the samples measured at step 200")
    epochs = (Record(4, 1.0, "epoch", {"train_loss": 0.25}),)
    assert shown(Run(Path("r"), {}, epochs)) == ("0.25", "mean of the last epoch")
    assert shown(Run(Path("r"), {}, ())) == ("–", "not measured")


def test_what_the_budget_left_out_is_said():
    values = {"left_out": 3, "without": {"tangent": 5}, "put_off": ["sharpness"]}
    run = Run(Path("r"), {}, (Record(9, 1.0, "schedule", {"left_out": 1}), Record(9, 2.0, "schedule", values)))
    said = "3 measurements that were due; tangent at 5 of the others; sharpness, put off until it can be paid"
    assert left_out(run) == said
    assert damage_of([NamedRun("r", run)]) == [f"Left out, since it would have cost more than the budget: {said}."]
    assert left_out(Run(Path("r"), {}, (Record(9, 1.0, "schedule", {"left_out": 0}),))) == ""
    assert left_out(Run(Path("r"), {}, (Record(9, 1.0, "schedule", {"left_out": "<b>", "without": 3}),))) == ""


def test_what_follows_from_a_cause_has_no_remedy_of_its_own(monkeypatch):
    cause = {"name": "learning-rate-too-high", "severity": "critical", "action": "Lower it", "because": []}
    found = [cause, {**cause, "name": "divergence", "because": ["learning-rate-too-high"]}]
    monkeypatch.setattr(Run, "findings", property(lambda _: found))
    (first,) = findings_of([NamedRun("r", Run(Path("r"), {}, ()))])
    (second,) = first["consequences"]
    assert (first["action"], first["follows"]) == ("Lower it", False)
    assert (second["action"], second["follows"], second["where"]) == ("", True, "follows from learning rate too high")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"hessian": 30.0, "limit": 20.0}, ("30", "150% of the limit 20, at step 5")),
        ({"hessian": 3037.0, "limit": 20.0}, ("3,037", "152 times the limit 20, at step 5")),
        (
            {"hessian": 30.0, "limit": 20.0, "preconditioned": 19.0, "preconditioned_limit": 38.0},
            ("19", "50% of the limit 38, at step 5"),
        ),
        ({"hessian": 30.0}, ("30", "at step 5, its limit is unknown")),
    ],
)
def test_the_head_holds_the_sharpness_against_the_limit_of_its_kind(values, shown):
    run = Run(Path("r"), {}, (Record(5, 1.0, "sharpness", values),))
    numbers = {each.label: (each.value, each.note) for each in key_numbers(NamedRun("r", run))}
    assert numbers["Sharpness"] == shown


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match="file/page.html: expected a file that can be written, got File exists. Choose"
    ):
        write_report(Run(tmp_path, {}, (Record(1, 1.0, "loss", {"loss": 1.0}),)), tmp_path / "file" / "page.html")


def test_a_run_of_numbers_shows_its_test_loss_beside_that_of_a_constant_answer():
    of_epoch = Record(10, 1.0, "epoch", {"epoch": 1, "test_loss": 0.8})
    known = [Record(step, 1.0, "loss", {"loss": 9.0, "constant_loss": 8.0, "form": "other"}) for step in (1, 10)]
    tiles = {each.label: each for each in key_numbers(NamedRun("r", Run(Path("r"), {}, (*known, of_epoch))))}
    assert "Test accuracy" not in tiles
    told = tiles["Test loss"]
    assert (told.value, told.note) == ("0.8", "after the last epoch; 10% of the best constant answer's 8")
    assert told.judgement == "good"


def test_pairs_are_not_called_good_where_a_finding_says_that_classes_fight():
    values = {"conflict_fraction": 0.4, "mean_cosine": 0.1}
    fine = [Record(step, 1.0, "alignment", values) for step in (1, 2, 3, 4)]
    apart = [*fine, *(Record(step, 1.0, "classes", {"within": 1.0, "between": -1.0}) for step in (1, 2, 3, 4))]
    judged = [key_numbers(NamedRun("r", Run(Path("r"), {}, tuple(each))))[3].judgement for each in (fine, apart)]
    assert judged == ["good", "look"]


def test_the_first_screen_says_what_to_change():
    found = {"name": "learning-rate-too-high", "severity": "warning", "layer": None, "steps": [1, 2], "evidence": {}}
    found |= {"threshold": "", "source": "", "action": "Lower the rate", "summary": "Steps are too long."}
    for values, told in ((found, True), (found | {"severity": "info"}, False)):
        run = Run(Path("r"), {}, (Record(1, 1.0, "loss", {"loss": 1.0}), Record(2, 1.0, "finding", values)))
        head = page_html([NamedRun("r", run)]).partition('class="facts"')[0]
        assert ("Lower the rate. <a" in head) == told


def test_findings_stand_in_the_order_of_the_diagnosis(full, full_run):
    """Also of a run with which none was stored."""
    names = [each["name"].replace("-", " ").capitalize() for each in full_run.findings]
    assert {"Learning rate too high", "Vanishing gradients", "Conflicting gradients"} <= set(names)
    places = [full.text.index(name) for name in names]
    assert places == sorted(places)
    bare = replace(full_run, records=tuple(r for r in full_run.records if r.probe != "finding"))
    assert [each["name"] for each in bare.findings] == [finding.name for finding in pb.diagnose(bare)] != []
    for finding in pb.diagnose(full_run):
        assert finding.summary in full.text
        assert finding.action in full.text
    assert "layer conv1.weight" in full.text


def test_links_lead_somewhere(full):
    ids = {attributes.get("id") for _, attributes in full.tags}
    inner = [each["href"] for each in full.all("a")]
    assert len(inner) > 10
    assert all(href.startswith("#") and href[1:] in ids for href in inner)


@pytest.mark.parametrize("kind", ["full", "nasty"])
def test_nothing_is_loaded_and_nothing_else_is_linked(kind, request):
    page = request.getfixturevalue(kind)
    assert not any("src" in attributes or "srcset" in attributes for tag, attributes in page.tags if tag != "img")
    assert all(each["href"] == "data:," for each in page.all("link"))
    assert {each["href"][0] for each in page.all("a")} == {"#"}
    assert page.style
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert all(each["src"].startswith("data:image/png;base64,") for each in page.all("img"))
    assert not {tag for tag, _ in page.tags} & {"iframe", "object", "embed", "base", "form", "b", "i"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@pytest.mark.parametrize("kind", ["full", "nasty"])
def test_exactly_the_two_scripts_of_the_policy_can_run(kind, request):
    page = request.getfixturevalue(kind)
    policy = next(each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert [each.get("type") for each in page.all("script")] == ["text/plain", "text/plain", None]
    _, packed, own = page.scripts
    library = zlib.decompress(base64.b64decode(packed)).decode()
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (library, own)]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert re.findall(r"sha256-([^']+)'", policy) == digests


def test_names_from_a_run_are_text(nasty):
    assert nasty.text.count(SCRIPT) > 10
    assert "</script><img src=x onerror=alert(2)>" in nasty.text
    assert '<b>"bold"</b> & <a href="http://evil.example">x</a>' in nasty.text
    assert "nasty & 'mean'" in nasty.text
    assert "&lt;" not in nasty.text  # nothing is escaped twice


def test_names_are_escaped_for_plotly_too(nasty):
    blob = zlib.decompress(base64.b64decode(nasty.scripts[0])).decode()
    assert not set("<>&") & set(blob)
    charts = json.loads(blob)
    assert set(charts) == {each["id"] for each in nasty.all("figure")}
    assert charts["share"]["data"][0]["name"] == "&lt;script&gt;alert(1)&lt;/script&gt;"
    for chart in charts.values():
        del chart["tables"]  # which the page shows nowhere: its script writes files of them
    marked = {(key, text) for key, text in texts_of(charts) if "<" in text}
    assert {key for key, _ in marked} == {"hovertemplate"}  # our own
    assert not any("script" in text or "bold" in text for _, text in marked)


def test_failed_probes_are_listed(nasty, full):
    assert "Probes that failed" in nasty.text
    assert "ValueError: </script><img src=x onerror=alert(2)>" in nasty.text
    assert "RuntimeError: no room for 3 vectors" in full.text


def test_an_empty_run_makes_a_page_that_says_so(write, empty_run):
    page = Page(write(empty_run).read_text(encoding="utf-8"))
    assert "Not measured" in page.text
    assert "the record holds no loss" in page.text.lower()
    assert page.text.count("not measured") >= 12
    assert "Probes that failed" not in page.text
    assert page.all("figure") == []


def test_several_runs_stand_in_one_table(write, full_run, small_run, empty_run):
    page = Page(write(full_run, small_run, empty_run).read_text(encoding="utf-8"))
    assert "3 training runs compared" in page.text
    rows = page.text[page.text.index("3 training runs") : page.text.index("What the numbers say")]
    assert all(name in rows for name in ("full", "small", "empty"))


def test_damaged_lines_are_mentioned(write, tmp_path):
    with RunWriter(tmp_path / "torn", {}) as writer:
        writer.append(0, "loss", {"loss": 1.0})
    with (tmp_path / "torn" / "records.jsonl").open("a") as file:
        file.write('{"step": 1, "pro')
    with pytest.warns(UserWarning, match="1 damaged lines"):
        run = load_run(tmp_path / "torn")
    text = Page(write(run).read_text(encoding="utf-8")).text
    assert "Damaged lines of the record that were skipped: torn: 1." in text


def test_resumed_training_is_mentioned(write, tmp_path):
    for resume in (None, 1):
        with RunWriter(tmp_path / "again", {}, resume=resume) as writer:
            for step in range(1 if resume is None else 2, 4):
                writer.append(step, "loss", {"loss": 1.0})
    text = Page(write(load_run(tmp_path / "again")).read_text(encoding="utf-8")).text
    assert "Training was resumed: again from step 1 (2 records of steps made once more are left out)." in text


def test_a_path_is_read_and_its_folder_made(full_run, tmp_path):
    path = write_report(str(full_run.path), tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_nothing_is_overwritten_unless_asked(empty_run, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a path that is free, got an existing file\. .*overwrite=True"):
        write_report(empty_run, path)
    assert path.read_text() == "mine"
    assert "</html>" in write_report(empty_run, path, overwrite=True).read_text(encoding="utf-8")


def test_nothing_half_written_stays(empty_run, tmp_path, monkeypatch):
    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="a file that can be written, got disk full. Choose another path"):
        write_report(empty_run, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_unusable_arguments_are_refused(empty_run, tmp_path):
    with pytest.raises(InputError, match="expected the path of a file, got a folder"):
        write_report(empty_run, tmp_path)
    with pytest.raises(InputError, match="expected at least one run, got an empty list"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(InputError, match="expected a run or the path of one, got int"):
        write_report([empty_run, 3], tmp_path / "report.html")


def test_plotly_is_not_imported_before_it_is_needed():
    code = "import sys, pullback.report; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=HANGS).returncode == 0
