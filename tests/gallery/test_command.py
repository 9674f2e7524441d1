"""``pullback gallery`` as a user meets it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pullback as pb
from pullback.cli import gallery
from tests import command
from tests.command import HANGS, Done

PAGES = gallery.find_pages()
FAST = "grosse2021_gauss_newton"


def run(*arguments: str | Path) -> Done:
    return command.run("gallery", *arguments)


def test_lists_the_pages_without_loading_torch():
    """No import of torch: the list and ``--help`` answer in a fraction of a second."""
    code = "import sys; from pullback.cli.main import app; app(['gallery'], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS
    ).stdout.splitlines()
    assert lines.pop() == "False"
    assert [line.split()[0] for line in lines] == list(PAGES)
    assert all(gallery.title_of(PAGES[line.split()[0]]) in line for line in lines)
    assert run("--help").returncode == 0


def test_runs_a_page_and_does_not_overwrite_it(tmp_path):
    done = command.run_alone("gallery", FAST, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Page: {tmp_path / FAST}.html" in done.stdout
    assert "\x1b[" not in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{FAST}.html", f"{FAST}.json"]
    again = run(FAST, "--out", tmp_path)
    assert again.returncode == 2
    assert "expected a folder without these pages, got" in again.stderr
    assert run("all", "--out", tmp_path).returncode == 2  # before anything is computed


def test_an_unknown_page_is_named_with_those_there_are():
    done = run("nope")
    assert done.returncode == 2
    assert "expected a page among bao2020_autoencoder, " in done.stderr
    assert "got 'nope'" in done.stderr
    assert run(FAST, "--preset", "huge").returncode == 2


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The command, as if the package lay in another folder."""
    (tmp_path / "pullback/cli").mkdir(parents=True)
    monkeypatch.setattr(gallery, "__file__", str(tmp_path / "pullback/cli/gallery.py"))
    return tmp_path


def test_finds_the_scripts_of_a_wheel(elsewhere):
    with pytest.raises(pb.InputError, match="gallery: expected the gallery's scripts beside the package, got none in"):
        gallery.find_pages()
    folder = elsewhere / "pullback_gallery"
    folder.mkdir()
    (folder / "kit").mkdir()
    for name in ("kit/page.py", "charts.py", "smith1999_topic.py"):
        (folder / name).write_text('"""A title.\n\nText."""\n')
    assert gallery.find_pages() == {"smith1999_topic": folder / "smith1999_topic.py"}
    assert gallery.title_of(folder / "smith1999_topic.py") == "A title"


def test_failed_pages_are_counted(elsewhere, tmp_path, capfd):
    import typer

    folder = elsewhere / "gallery"
    folder.mkdir()
    for number, code in ((1, 0), (2, 1), (3, 1)):
        (folder / f"smith199{number}_topic.py").write_text(f"import sys\nprint(sys.argv[1:])\nsys.exit({code})\n")
    options = {"preset": gallery.Preset.full, "out": tmp_path / "out", "force": True}
    with pytest.raises(typer.Exit) as stopped:
        gallery.command("all", **options)
    assert stopped.value.exit_code == 1
    out, err = capfd.readouterr()
    assert "2 of 3 pages failed: smith1992_topic, smith1993_topic" in err
    assert out.count(f"['--preset', 'full', '--out', '{tmp_path / 'out'}', '--force']") == 3
    gallery.command("smith1991_topic", **options)


def test_a_page_that_refuses_its_options_ends_the_command(elsewhere, tmp_path, capfd):
    import typer

    folder = elsewhere / "gallery"
    folder.mkdir()
    for number, code in ((1, 2), (2, 0)):
        (folder / f"smith199{number}_topic.py").write_text(f"import sys\nprint('page {number}')\nsys.exit({code})\n")
    with pytest.raises(typer.Exit) as stopped:
        gallery.command("all", preset=gallery.Preset.small, out=tmp_path / "out", force=False)
    assert stopped.value.exit_code == 2
    out, err = capfd.readouterr()
    assert out == "page 1\n"
    assert "failed" not in err


@pytest.mark.parametrize("name", PAGES)
def test_pages_use_public_names_only(name):
    """Nothing private of the package is imported, nor used by attribute."""
    tree = ast.parse(PAGES[name].read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [m for m in modules if m.startswith("pullback") and "._" in m]
    assert not [a for a in attributes if a.startswith("_") and not a.startswith("__")]


def test_the_documentation_lists_every_page():
    text = (Path(__file__).parents[2] / "docs/gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(PAGES)
