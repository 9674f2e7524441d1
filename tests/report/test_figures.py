"""Data files and images of the charts."""

from __future__ import annotations

import csv
import importlib
import os
import shutil

import pytest

from pullback._checks import InputError
from pullback.report import write_figures
from pullback.report.run import figures
from pullback.runs import RunWriter, load_run

BROWSER = os.environ.get("PULLBACK_CHROMIUM") or shutil.which("chromium")


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_every_chart_gets_its_numbers_in_full(full_run, tmp_path):
    """S0-27: one file a chart, none of them empty."""
    written = write_figures(full_run, tmp_path / "figures", images=False)
    assert len(written) == 12
    assert all(path.suffix == ".csv" and path.stat().st_size for path in written)
    assert sorted(written) == sorted((tmp_path / "figures").iterdir())
    header, *rows = rows_of(tmp_path / "figures" / "sharpness.csv")
    assert header == ["Step", "Hessian", "Gauss-Newton", "limit"]
    assert [float(row[1]) for row in rows] == full_run.series("sharpness", "hessian")[1]
    matrix = rows_of(tmp_path / "figures" / "cosine.csv")
    assert len(matrix) == 257
    stored = full_run.array("alignment", 590, "cosine")
    assert float(matrix[4][6]) == pytest.approx(stored[3, 4], abs=1e-4)


def test_values_that_are_no_numbers_are_written_as_such(nasty_run, tmp_path):
    write_figures(nasty_run, tmp_path, images=False)
    assert [row[1] for row in rows_of(tmp_path / "loss.csv")[1:]] == [
        "2.0",
        "nan",
        "0.0",
        "inf",
        str(1e9),
        "-inf",
    ]


def test_no_name_becomes_a_formula(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(0, "flow", {"gradient_norm": {"=HYPERLINK(1)": 1.0, "fc": -1.0}})
    write_figures(load_run(tmp_path / "run"), tmp_path / "out", images=False)
    assert rows_of(tmp_path / "out" / "flow.csv") == [["Step", "'=HYPERLINK(1)", "fc"], ["0", "1.0", "-1.0"]]


def test_an_empty_run_gives_no_files(empty_run, tmp_path):
    assert write_figures(empty_run, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(small_run, tmp_path):
    (tmp_path / "loss.csv").write_text("mine")
    with pytest.raises(InputError, match=r"without these files, got loss\.csv\. .*overwrite=True"):
        write_figures(small_run, tmp_path, images=False)
    assert (tmp_path / "loss.csv").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["loss.csv"]
    write_figures(small_run, tmp_path, images=False, overwrite=True)
    assert (tmp_path / "loss.csv").read_text().startswith("Step")


def test_a_file_is_no_folder(small_run, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="expected the path of a folder, got a file"):
        write_figures(small_run, tmp_path / "taken", images=False)


def test_a_missing_kaleido_is_named_and_nothing_is_written(small_run, tmp_path, monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(figures.importlib, "import_module", fail)
    with pytest.raises(InputError, match=r"the package kaleido.*none installed.*pass images=False"):
        write_figures(small_run, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_missing_browser_is_named_and_nothing_is_written(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures.importlib, "import_module", lambda name: None)
    monkeypatch.setenv("PULLBACK_CHROMIUM", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"a Chromium or Chrome, got none among .*nothing.*pass images=False"):
        write_figures(small_run, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_browser_that_fails_leaves_nothing(small_run, tmp_path, monkeypatch):
    class Kaleido:
        @staticmethod
        def write_fig_from_object_sync(jobs, kopts):
            raise RuntimeError("no display")

    monkeypatch.setattr(figures.importlib, "import_module", lambda name: Kaleido)
    monkeypatch.setattr(figures, "find_browser", lambda: "browser")
    with pytest.raises(InputError, match="the browser to draw, got RuntimeError: no display"):
        write_figures(small_run, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
@pytest.mark.skipif(not BROWSER, reason="no Chromium: set PULLBACK_CHROMIUM or install one")
@pytest.mark.skipif(not importlib.util.find_spec("kaleido"), reason="kaleido is not installed")
def test_images_are_drawn(tmp_path):
    with RunWriter(tmp_path / "run", {}) as writer:
        for step in range(3):
            writer.append(step, "loss", {"loss": 1.0 / (step + 1)})
    written = write_figures(load_run(tmp_path / "run"), tmp_path / "out")
    assert [path.name for path in written] == ["loss.csv", "loss.png"]
    data = written[1].read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    assert (width, height) == (2 * figures.WIDTH, 2 * 384)
    assert len(data) > 20_000  # more than an empty sheet
