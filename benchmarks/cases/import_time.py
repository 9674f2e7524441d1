"""What the package adds to the start of a process: an import beside torch, and the command's help."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import targets as to_reach
from benchmarks.methods.problem import Call, Skip

TITLE = "Start of a process: wall time of a whole child process"
REPEATS = 9


def build(scale: float) -> None:
    """Nothing to build."""


def command(*words: str) -> Callable[[None], Call]:
    def prepare(_: None) -> Call:
        if not Path(words[0]).exists():
            raise Skip(f"the command {Path(words[0]).name} is not installed")
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

        def call() -> None:
            done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise Skip(done.stderr.strip().splitlines()[-1])

        return call

    return prepare


def python(statement: str) -> Callable[[None], Call]:
    return command(sys.executable, "-c", statement)


FIRST_USE = "import torch, pullback; pullback.backward_kernel"  # names are loaded when they are first used
METHODS: dict[str, Callable[[None], Call]] = {
    "import torch": python("import torch"),
    "import torch, pullback": python("import torch, pullback"),
    FIRST_USE: python(FIRST_USE),
    "pullback --help": command(str(Path(sys.executable).parent / "pullback"), "--help"),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.adds(rows, "import torch, pullback", "import torch", 0.15),
        to_reach.adds(rows, FIRST_USE, "import torch", 0.15),
        to_reach.at_most(rows, "pullback --help", 0.5),
    ]
