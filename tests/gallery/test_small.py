"""Small runs are computed once, and anew when their code is another; the site refuses one that fails."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.gallery.conftest import GALLERY

SCRIPT = '''"""Two (Smith 1999, figure 1)."""
from pathlib import Path


def build(page):
    with Path(__file__).with_name("times").open("a") as times:
        times.write("x")
    page.row("two", 2, {value}, 0)
'''
NAME = "smith1999_two"


@pytest.fixture
def small(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, as if the package and the gallery lay in another folder, with one page."""
    module = load("kit.small")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / f"{NAME}.py").write_text(SCRIPT.format(value=2))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "gallery"))
    yield module
    sys.modules.pop(NAME, None)
    module._hash.cache_clear()


def changed(small: ModuleType, text: str) -> None:
    """The script becomes another, as for a process that starts later."""
    (small.ROOT / "gallery" / f"{NAME}.py").write_text(text)
    sys.modules.pop(NAME)
    importlib.invalidate_caches()
    small._hash.cache_clear()


def times(small: ModuleType) -> int:
    return len((small.ROOT / "gallery" / "times").read_text())


def test_a_page_is_computed_once_until_its_code_changes(small: ModuleType) -> None:
    kept = small.ROOT / "kept"
    assert small.kept_record(NAME, kept) is None
    assert small.small_page(NAME, kept).rows[0].here == small.small_page(NAME, kept).rows[0].here == 2
    assert times(small) == 1
    record = small.kept_record(NAME, kept)
    assert (record["page"], record["preset"], record["rows"][0]["verdict"]) == (NAME, "small", "holds")
    changed(small, SCRIPT.format(value=3) + "\n# longer\n")
    assert small.kept_record(NAME, kept) is None
    assert small.small_page(NAME, kept).rows[0].here == 3
    assert times(small) == 2


def test_what_was_cut_off_is_computed_again(small: ModuleType) -> None:
    kept = small.ROOT / "kept"
    small.small_page(NAME, kept)
    path = kept / f"{NAME}.pickle"
    path.write_bytes(path.read_bytes()[:-20])
    assert small.kept_record(NAME, kept) is None
    path.write_bytes(b"")
    assert small.small_page(NAME, kept).rows
    assert times(small) == 2


def test_what_another_version_computed_does_not_count(small: ModuleType) -> None:
    small.small_page(NAME, small.ROOT / "kept")
    path = small.ROOT / "kept" / f"{NAME}.pickle"
    known = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(known | {"versions": known["versions"] | {"torch": "2.0"}}))
    assert small.kept_record(NAME, small.ROOT / "kept") is None


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("small_runs", GALLERY.parent / "docs" / "hooks" / "small_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_page_that_fails_ends_the_build(hook: ModuleType, load, tmp_path: Path, monkeypatch) -> None:
    """The gallery's own kit, and beside it a page whose number is wrong."""
    from mkdocs.exceptions import PluginError

    monkeypatch.setenv("PULLBACK_SMALL_RUNS", str(tmp_path))
    with pytest.raises(PluginError, match=r"(?s)gallery, no_such_page: .*No module named 'no_such_page'"):
        hook.records(GALLERY.parent, ["no_such_page"])
    (tmp_path / f"{NAME}.py").write_text(SCRIPT.format(value=3))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(PluginError, match=f"gallery, {NAME}: {NAME}: expected 2 .exact. for 'two', got 3"):
        hook.records(GALLERY.parent, [NAME])


def test_a_kept_page_that_fails_ends_the_build_too(hook: ModuleType, load, tmp_path: Path, monkeypatch) -> None:
    from mkdocs.exceptions import PluginError

    rows = [{"quantity": "two", "holds": True, "not_reproduced": ""}, {"quantity": "three", "holds": False}]
    monkeypatch.setattr(load("kit.small"), "kept_record", lambda name, folder: {"rows": rows})
    rows[1]["not_reproduced"] = "the paper's slip"
    assert hook.records(tmp_path, [NAME])[NAME]["rows"] == rows
    rows[1]["not_reproduced"] = ""
    with pytest.raises(PluginError, match=f"^{NAME}: expected a small run that holds, got 'three'. Compute it"):
        hook.records(tmp_path, [NAME])
    monkeypatch.setattr(load("kit.small"), "kept_record", lambda name, folder: None)
    monkeypatch.setattr(hook, "_compute", lambda *_: None)
    with pytest.raises(PluginError, match=f"^{NAME}: expected code that stays as it is, got changes during the build"):
        hook.records(tmp_path, [NAME])
