"""The package as a whole: its public list, its checklist, and what it must not contain."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

import pullback as pb
from tests.command import HANGS

ROOT = Path(__file__).parents[1]

# Checklist, items this version closes, by note. S0, training: definitions, propositions, practical steps, the script.
# S1, lecture notes on dynamics; S2, Taylor approximations; S3, Hessian notes; S4, linearity of wide networks.
CLOSED = {
    "S0": [*range(1, 50)],
    "S1": [*range(1, 92)],
    "S2": [*range(1, 49)],
    "S3": [*range(1, 17)],
    "S4": [*range(1, 31)],
}


STUB = ast.parse((ROOT / "pullback" / "__init__.pyi").read_text()).body[1:]


def test_every_public_name_can_be_reached() -> None:
    for name in pb.__all__:
        assert getattr(pb, name) is not None
    assert dir(pb) == pb.__all__ == sorted(pb.__all__)
    everything: dict[str, object] = {}
    exec("from pullback import *", everything)
    assert everything.keys() - {"__builtins__"} == set(pb.__all__)
    assert not hasattr(pb, "__wrapped__")
    with pytest.raises(AttributeError, match="^module 'pullback' has no attribute 'solv'$") as refused:
        pb.solv  # noqa: B018
    assert (refused.value.name, refused.value.obj) == ("solv", pb)  # from which Python suggests `solve`
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'pullback'"):
        exec("from pullback import nothing")


def test_the_stub_has_every_public_name_once_and_exports_it() -> None:
    """``from .module import name as name``: what checkers call exported, and all that lazy-loader reads."""
    names = []
    for node in STUB:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        assert node.level == 1
        for alias in node.names:
            assert alias.asname == alias.name, ast.unparse(node)
            home = import_module(f"pullback.{node.module}" if node.module else f"pullback.{alias.name}")
            assert getattr(pb, alias.name) is (getattr(home, alias.name) if node.module else home)
            names.append(alias.name)
    assert sorted(names) == pb.__all__


def test_public_classes_are_found_again_by_pickle() -> None:
    classes = [value for value in map(pb.__getattr__, pb.__all__) if isinstance(value, type)]
    assert len(classes) > 40
    assert [pickle.loads(pickle.dumps(value)) for value in classes] == classes


def test_importing_loads_next_to_nothing() -> None:
    """Also not what a run's findings need, which are found when they are first asked for."""
    code = (
        "import sys; before = set(sys.modules); import pullback; "
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('pullback') or m in ('torch', 'typing'))); "
        "from pullback._hooks import judges; print(len(judges))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANGS
    ).stdout
    assert printed.splitlines() == ["['pullback', 'pullback._hooks']", "1"]


def test_every_public_name_is_documented_and_tested() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    made = [name for name in pb.__all__ if name != "__version__" and not inspect.ismodule(getattr(pb, name))]
    for name in set(made) - {"PullbackError", "Kernel", "KernelPlan", "Finding", "Eigenpairs", "Run"}:
        assert getattr(pb, name).__doc__, name
        assert re.search(rf"\b{name}\b", tests), f"{name} is in no test"


@pytest.mark.parametrize("note", sorted(CLOSED))
def test_every_item_of_the_checklist_has_a_test(note: str) -> None:
    named = set()
    item = rf"{note}-(\d\d)"
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path == Path(__file__):
            continue
        for text in re.findall(rf"{note}-\d\d(?:(?:, | and | to ){note}-\d\d)*", path.read_text()):
            for first, joint, last in re.findall(rf"{item}(?:( to |, | and )(?={item}))?", text):
                named |= set(range(int(first), int(last) + 1)) if joint == " to " else {int(first)}
    missing = [f"{note}-{number:02d}" for number in CLOSED[note] if number not in named]
    assert not missing


def test_file_names_that_stand_twice_are_those_of_a_list_with_reasons() -> None:
    """The table in ``docs/design.md``: what a name holds in every folder that has it."""
    counted = Counter(path.stem for path in (ROOT / "pullback").rglob("*.py"))
    twice = sorted(name for name, count in counted.items() if count > 1 and not name.startswith("__"))
    table = (ROOT / "docs" / "design.md").read_text().split("| name | the same in each room |")[1].split("\n\n")[0]
    listed = re.findall(r"(?m)^\| `(\w+)` \| \S", table)
    assert listed == twice


def test_no_machine_path_is_named() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANGS
    ).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    forbidden = [
        "/wo" + "rk/",
        ".." + "/shared",
        "/r" + "oot/",
        "/.lib" + "rary",
        ".lib" + "rary/",
    ]  # torch has a module of that name
    for name in files:
        path = ROOT / name
        if path.suffix in (".png", ".json") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], name
