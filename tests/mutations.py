"""How much of what can go wrong in the source the tests notice: ``python tests/mutations.py --count 150 --seed 1``.

Draws single changes of the source, makes each in a copy, and runs the tests that execute what was changed. Prints what
no test noticed, and the share that was noticed, package by package. A line that no test executes counts as not noticed,
a change that alters nothing (an equivalent one) as well: they are in the list, for a reader to judge. Not part of
``make test``. Takes minutes to record who executes what (once a state of the files), then 10 seconds or so a change and
core; ends with 1 if the share is below ``--at-least``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutation.executed import Executed, record  # noqa: E402
from tests.mutation.mutants import Mutant, draw  # noqa: E402

FOLDERS = ("pullback", "tests", "gallery", "docs", "benchmarks")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
KEPT = Path(tempfile.gettempdir()) / "pullback-mutations"
NOTICED = (1, 2, 3, 4)  # pytest: a test failed; files that cannot be imported, here or in conftest.py
HANGS = 600  # seconds of a clock, for processes that wait for each other


def main() -> None:
    options = arguments()
    found = executed(options)
    drawn = draw(ROOT, options.count, options.seed, options.packages)
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        for number in range(options.jobs):
            copies.put(compiled(copied(Path(folder) / str(number))))
        results = pool.map(lambda mutant: judge(mutant, found, copies, options.seconds), drawn)
        told = [(mutant, said(mutant, verdict)) for mutant, verdict in zip(drawn, results, strict=True)]
    share = summary(told)
    print(f"{share:.1%} of {len(drawn)} noticed, seed {options.seed}")
    sys.exit(share < options.at_least)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="how many changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=lambda text: text.split(","), default=[], help="kernels,spectral,… [all]")
    parser.add_argument("--seconds", type=float, default=90, help="of tests a change, by what they took when recorded")
    parser.add_argument("--jobs", type=int, default=1, help="changes at a time")
    parser.add_argument("--tests", default="-m 'not slow'", help="pytest's options for the run that is recorded")
    parser.add_argument("--at-least", type=float, default=0.9)
    return parser.parse_args()


def executed(options: argparse.Namespace) -> Executed:
    """Who executes what, from an earlier run on the same files if there was one."""
    digest = hashlib.sha256(options.tests.encode())
    for path in sorted(each for folder in ("pullback", "tests") for each in (ROOT / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    home = KEPT / digest.hexdigest()[:16]
    if not (home / "done").exists():
        shutil.rmtree(home, ignore_errors=True)
        record(copied(home / "copy"), home / "run", [*shlex.split(options.tests), "-n", str(options.jobs)])
        (home / "done").touch()
    found = Executed(home / "copy", home / "run")
    if not found.seconds:
        shutil.rmtree(home)
        sys.exit("mutations: expected tests that pass, got none. Look at what pytest said above.")
    print(f"{len(found.seconds)} tests recorded, {sum(found.seconds.values()):.0f} s; failed: {found.failed or 'none'}")
    return found


def copied(target: Path) -> Path:
    """What the tests need, without what they leave behind."""
    target.mkdir(parents=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)
    return target


def compiled(copy: Path) -> Path:
    """With the files pytest makes of tests it has read, so that no change's run makes them anew.

    Runs themselves write none: a changed file of the same size and second would pass for the unchanged one.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=copy, env=env, capture_output=True, check=True)
    return copy


def judge(mutant: Mutant, found: Executed, copies: SimpleQueue[Path], seconds: float) -> str:
    """Whether a test notices: ``noticed``, ``hangs`` (no end), ``survived`` or ``never executed``."""
    tests, taken = found.tests(mutant), 0.0
    for count, test in enumerate(tests):
        taken += found.seconds[test]
        if count and taken > seconds:
            tests = tests[:count]
            break
    if not tests:
        return "never executed"
    copy = copies.get()
    try:
        with changed(copy / mutant.path, mutant):
            return run(tests, copy, seconds)
    finally:
        copies.put(copy)


@contextmanager
def changed(path: Path, mutant: Mutant) -> Iterator[None]:
    source = path.read_text()
    path.write_text(mutant.applied(source))
    try:
        yield
    finally:
        path.write_text(source)


def run(tests: list[str], copy: Path, seconds: float) -> str:
    chosen = copy / "chosen"
    chosen.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", f"@{chosen}"]
    limit = int(60 + 4 * seconds)
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
            capture_output=True,
            timeout=HANGS + limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode < 0:
        return "hangs"
    return "noticed" if done.returncode in NOTICED else f"survived {len(tests)} tests"


def said(mutant: Mutant, verdict: str) -> str:
    if verdict != "noticed":
        print(f"{verdict:>20}  {mutant}", flush=True)
    return verdict


def summary(told: list[tuple[Mutant, str]]) -> float:
    """The table by package; returns the share that was noticed."""
    drawn = Counter(mutant.package for mutant, _ in told)
    noticed = Counter(mutant.package for mutant, verdict in told if verdict in ("noticed", "hangs"))
    for package in sorted(drawn):
        print(f"{package:14} {noticed[package]:4} of {drawn[package]:4}")
    return noticed.total() / max(len(told), 1)


if __name__ == "__main__":
    main()
