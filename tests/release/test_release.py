"""What is handed out: a wheel and a source distribution, whole, which work where nothing else is."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.command import HANGS
from tests.release.conftest import ROOT, run

pytestmark = pytest.mark.slow
USER = Path(__file__).with_name("user.py")


def test_the_wheel_has_what_it_needs(made: tuple[Path, Path]) -> None:
    """Every file of the package that git knows, whatever its kind; the gallery; nothing that was left lying about."""
    tracked = subprocess.run(
        ["git", "ls-files", "pullback", "gallery"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANGS
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    with zipfile.ZipFile(made[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    assert names == {re.sub("^gallery/", "pullback_gallery/", name) for name in tracked if (ROOT / name).exists()}
    needed = {"pullback/py.typed", "pullback/__init__.pyi", "pullback/charts/page.js", "pullback/charts/style.css"}
    assert needed <= names
    assert any(name.endswith(".html") and "/report/templates/" in name for name in names)
    assert "Requires-Python: >=3.11" in metadata
    with tarfile.open(made[0]) as source:
        outer = {name.partition("/")[2].partition("/")[0] for name in source.getnames()} - {""}
    meant = {
        "pullback",
        "gallery",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "pyproject.toml",
        "PKG-INFO",
    }
    assert outer - {".gitignore"} == meant


def test_both_pass_what_checks_them(made: tuple[Path, Path]) -> None:
    assert run(sys.executable, "-m", "twine", "check", "--strict", *made, cwd=ROOT).count("PASSED") == len(made)
    assert "OK" in run(sys.executable, "-m", "check_wheel_contents", made[1], cwd=ROOT)


def test_the_version_is_that_of_git(made: tuple[Path, Path], empty: Path) -> None:
    """Of the tag, and before there is one a development version, which the installed package tells."""
    version = made[1].name.split("-")[1]
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(\.dev\d+)?(\+[\w.]+)?", version)
    told = run(empty, "-c", "import pullback; print(pullback.__version__, pullback.__file__)", cwd=empty.parent).split()
    assert told[0] == version
    assert told[1].startswith(str(empty.parents[1]))
    assert run(empty.with_name("pullback"), "--version", cwd=empty.parent).strip() == f"pullback {version}"


def test_it_works_in_an_empty_environment(empty: Path, tmp_path: Path) -> None:
    printed = run(empty, USER, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert printed.strip() == "Kernel(12 x 12, 2 layers, P=50) True True [1, 2, 4, 8]"
    assert "bao2020_autoencoder" in run(empty.with_name("pullback"), "gallery", cwd=tmp_path)


def test_its_types_are_those_a_user_sees(empty: Path, tmp_path: Path) -> None:
    """By mypy, strictly, against the installed wheel; what is wrong is told."""
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\n")
    (tmp_path / "user.py").write_text(USER.read_text())
    (tmp_path / "wrong.py").write_text('import pullback as pb\n\npb.load_run("run").steps.nothing\npb.nothing\n')
    check = [sys.executable, "-m", "mypy", "--python-executable", empty, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run(
        list(map(str, [*check, "user.py", "wrong.py"])),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert re.findall(r"^([\w./]+):(\d+): error:", done.stdout, re.MULTILINE) == [("wrong.py", "3"), ("wrong.py", "4")]


def test_the_citation_has_what_its_schema_asks_for() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys()
    known = {"cff-version", "message", "title", "abstract", "type", "license", "authors", "keywords"}
    assert cited.keys() <= known
    assert cited["type"] in ("software", "dataset")
    assert all(each.keys() & {"name", "family-names", "given-names"} for each in cited["authors"])
    assert len(set(cited["keywords"])) == len(cited["keywords"]) > 0
    assert cited["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT")
