"""The package as a whole: its public list, its checklist, and what it must not contain."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import pullback as pb

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


def test_every_public_name_can_be_reached() -> None:
    assert sorted(pb.__all__) == sorted([*pb._WHERE, *pb._PACKAGES, "__version__"])
    for name in pb.__all__:
        assert getattr(pb, name) is not None
    assert set(dir(pb)) == set(pb.__all__)
    with pytest.raises(AttributeError, match="module 'pullback' has no attribute 'nothing'"):
        pb.nothing  # noqa: B018


def test_every_public_name_is_documented_and_tested() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in (
        n for n in pb._WHERE if n not in ("PullbackError", "Kernel", "KernelPlan", "Finding", "Eigenpairs", "Run")
    ):
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


def test_no_machine_path_is_named() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
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
