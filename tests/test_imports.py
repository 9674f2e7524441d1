"""No import goes round: inside packages too, and not by way of names that are only there for types."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name for path in (ROOT / "pullback").glob("*/__init__.py"))


def imports(folder: Path, package: str) -> dict[str, set[str]]:
    """Module of a folder -> the modules of the folder it imports, anywhere in its text."""
    files = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in folder.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        asked: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                asked |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        short = {each.removeprefix(f"{package}.") for each in asked if not package or each.startswith(f"{package}.")}
        found[name] = (short & files.keys()) - {name}
    return {name: asked for name, asked in found.items() if not name.endswith("__init__")}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring; empty if there is none."""
    left = {name: asked & graph.keys() for name, asked in graph.items()}
    while free := [name for name, asked in left.items() if not asked & left.keys()]:
        for name in free:
            del left[name]
    if not left:
        return []
    way = [min(left)]
    while way.count(way[-1]) < 2:
        way.append(min(left[way[-1]] & left.keys()))
    return way[way.index(way[-1]) :]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_inside_a_package(package: str) -> None:
    assert circle(imports(ROOT / "pullback" / package, f"pullback.{package}")) == []


@pytest.mark.parametrize("folder", ["gallery", "benchmarks"])
def test_no_circle_among_scripts(folder: str) -> None:
    assert circle(imports(ROOT / folder, "")) == []


def test_circles_are_seen(tmp_path: Path) -> None:
    """Through types and inside functions, and by `from package import module`."""
    (tmp_path / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import x\n")
    (tmp_path / "b.py").write_text("def f():\n    from p import c\n")
    (tmp_path / "c.py").write_text("import p.a\nimport p.d\n")
    (tmp_path / "d.py").write_text("import os\n")
    assert circle(imports(tmp_path, "p")) == ["a", "b", "c", "a"]
    (tmp_path / "c.py").write_text("import p.d\n")
    assert circle(imports(tmp_path, "p")) == []
