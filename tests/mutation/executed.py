"""Which tests execute which line, and what each of them takes: recorded once, by a plugin that knows the running test.

Processes that tests start are recorded too: they find ``coverage`` through a ``sitecustomize`` on their path, and the
running test's name in their environment.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.mutants import Mutant

RUNNING = "PULLBACK_RUNNING_TEST"
NOTES = "PULLBACK_NOTES_ON_TESTS"
FIXTURE = "fixture "
PROMISES = "tests/test_defaults.py"  # reads signatures, and executes none of the functions


class Executed:
    """What a run of the tests recorded in ``folder``, read anew.

    Args:
        root: the copy of the repository that was run.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._data = coverage.CoverageData(str(folder / "lines"))
        self._data.read()
        notes = [json.loads(line) for path in folder.glob("notes-*") for line in path.read_text().splitlines()]
        self.seconds = {note["test"]: note["seconds"] for note in notes if note["passed"]}
        self.failed = sorted(note["test"] for note in notes if not note["passed"])
        self._sharing: dict[str, list[str]] = defaultdict(list)  # tests that use what was made for several of them
        for note in notes:
            for fixture in note["shared"]:
                self._sharing[fixture].append(note["test"])

    def tests(self, mutant: Mutant) -> list[str]:
        """Tests that execute what is changed, cheapest first; those in the folder of its package before others.

        Of a default also those that read signatures.
        """
        found = self._at(mutant.path, mutant.watch)
        if mutant.uses or not found:
            for path, line in self._readers.get(mutant.uses or "", ()):
                found |= self._at(path, range(line, line + 1))
        if mutant.default:
            found |= {test for test in self.seconds if test.startswith(PROMISES)}
        own = f"tests/{mutant.package}"
        return sorted(found & set(self.seconds), key=lambda test: (not test.startswith(own), self.seconds[test], test))

    def _at(self, path: str, lines: range) -> set[str]:
        contexts = self._contexts(path)
        names = {name for line in lines for name in contexts.get(line, ())}
        return names | {test for name in names for test in self._sharing.get(name, ())}

    @cache  # noqa: B019 - there is one of these a process
    def _contexts(self, path: str) -> dict[int, list[str]]:
        return self._data.contexts_by_lineno(str(self._root / path))

    @cached_property
    def _readers(self) -> dict[str, list[tuple[str, int]]]:
        """Where a name is read."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for path in (self._root / "pullback").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                name = getattr(node, "id", None) or getattr(node, "attr", None)
                if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found[str(name)].append((path.relative_to(self._root).as_posix(), node.lineno))
        return found


def record(root: Path, folder: Path, options: list[str]) -> None:
    """Runs the tests once; takes about one and a half times as long as without recording."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("import coverage\n\ncoverage.process_startup()\n")
    (folder / "rc").write_text(
        f"[run]\nsource = {root / 'pullback'}\ndata_file = {folder / 'lines'}\nparallel = true\n"
        f"concurrency =\n  thread\n  multiprocessing\ncontext = ${{{RUNNING}-}}\n"
    )
    settings = {"COVERAGE_PROCESS_START": str(folder / "rc"), NOTES: str(folder), RUNNING: "", "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(folder), str(root)])
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.executed", "-q", *options]
    subprocess.run(command, cwd=root, env=os.environ | settings | {"PYTHONPATH": paths}, check=False)
    combined = coverage.Coverage(config_file=str(folder / "rc"))
    combined.combine()
    combined.save()


# The plugin.


def _switch(name: str) -> None:
    os.environ[RUNNING] = name
    if running := coverage.Coverage.current():
        running.switch_context(name)


def _passes_on(item: pytest.Item) -> list[str]:
    """Names of fixtures that several tests share."""
    definitions: dict[str, Any] = item._fixtureinfo.name2fixturedefs if hasattr(item, "_fixtureinfo") else {}
    return [_name(each) for found in definitions.values() for each in found if each.scope != "function"]


def _name(definition: pytest.FixtureDef[Any]) -> str:
    return f"{FIXTURE}{definition.baseid}::{definition.argname}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if NOTES not in os.environ:
        return (yield)
    item.stash[PASSED] = True
    start = time.process_time() + sum(os.times()[2:4])
    _switch(item.nodeid)
    try:
        return (yield)
    finally:
        _switch("")
        seconds = time.process_time() + sum(os.times()[2:4]) - start
        note = {"test": item.nodeid, "seconds": round(seconds, 3), "passed": item.stash[PASSED]}
        with (Path(os.environ[NOTES]) / f"notes-{os.getpid()}").open("a") as file:
            file.write(json.dumps(note | {"shared": _passes_on(item)}) + "\n")


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    item.stash[PASSED] = item.stash.get(PASSED, True) and not report.failed  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    before = os.environ.get(RUNNING)
    if before is None or fixturedef.scope == "function":
        return (yield)
    _switch(_name(fixturedef))
    try:
        return (yield)
    finally:
        _switch(before)
