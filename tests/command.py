"""The commands: in this process, which has loaded torch already, or in one of their own."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from pullback.cli import main

HANGS = 600  # seconds until a process that other tests need seconds of is said to hang
HEARS_INTERRUPTS = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # jobs in the
# background are started with interrupts ignored, and so is what they start


@dataclass
class Done:
    """What a finished command left."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Done:
    """The command as in a pipe."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["pullback", *map(str, arguments)])
        try:
            main.run()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def run_alone(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pullback", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
