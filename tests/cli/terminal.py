"""A command as a terminal sees it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path


def in_terminal(command: Sequence[str], cwd: Path) -> tuple[int, str]:
    """Exit code and all that a terminal of 100 columns is sent."""
    ours, theirs = pty.openpty()
    there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    there |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=there, cwd=cwd) as process:
        os.close(theirs)
        seen = bytearray()
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
        code = process.wait()
    os.close(ours)
    return code, seen.decode()


def lines_left(sent: str) -> list[str]:
    """What stands on the screen at the end: of what is written over itself the last."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent.replace("\r\n", "\n"))
    return [line.rsplit("\r", 1)[-1].rstrip() for line in plain.split("\n")]
