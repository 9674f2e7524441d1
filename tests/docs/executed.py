"""Pages whose code is run: ``python -m tests.docs.executed`` writes anew what the tutorials print.

A block of ``python`` is run, all of a page in one namespace; with a title it is a file instead. A block of ``sh`` is
commands. What they printed stands in the next block of ``text``: words as they are, numbers to within one percent, or
as a comment before the block says ("numbers within 20 percent"). After a line "..." more was printed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(
    r"^(?:<!-- numbers within (?P<percent>\d+) percent -->\n)?"
    r'```(?P<kind>python|sh|text)(?: title="(?P<title>[\w.]+)")?\n'
    r"(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
COMMANDS = {"pullback": [sys.executable, "-m", "pullback"], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


def run_page(page: Path, folder: Path) -> list[tuple[re.Match[str], str]]:
    """Run a page in a folder; every block of printed text with what was printed in its place."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed, found = "", []
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the monitor's, of trainings that go wrong on purpose
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["kind"] == "text":
                found.append((block, printed))
                printed = ""
            elif block["title"]:
                Path(block["title"]).write_text(block["body"], encoding="utf-8")
            elif block["kind"] == "sh":
                printed += "".join(map(_command, block["body"].splitlines()))
            else:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block["body"], f"{page.name}, a block", "exec"), names)
                printed += out.getvalue()
    assert not printed, f"{page.name} prints more than it shows: {printed}"
    return found


def _command(line: str) -> str:
    """What a command prints; it may end with the answer 1, as ``pullback diagnose`` does."""
    name, *arguments = line.split()
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [*COMMANDS[name], *arguments], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def differ(shown: str, printed: str, percent: float) -> bool:
    """Whether two texts are not the same: words, or numbers by more than so many percent."""
    if "\n...\n" in shown:
        shown = shown.partition("\n...\n")[0]
        printed = "\n".join(printed.split("\n")[: shown.count("\n") + 1])
    texts = [NUMBER.sub("#", " ".join(text.split())) for text in (shown, printed)]
    numbers = [[float(each.replace(",", "")) for each in NUMBER.findall(text)] for text in (shown, printed)]
    if texts[0] != texts[1] or len(numbers[0]) != len(numbers[1]):
        return True
    pairs = zip(*numbers, strict=True)
    return any(abs(one - other) > percent / 100 * max(abs(one), abs(other)) for one, other in pairs)


def _write(page: Path, folder: Path) -> None:
    """Put what a page prints into it."""
    text = page.read_text(encoding="utf-8")
    for block, printed in reversed(run_page(page, folder)):
        shown = block["body"]
        if not shown.strip() or differ(shown, printed, float(block["percent"] or 1)):
            if "\n...\n" in shown:
                kept = shown.partition("\n...\n")[0].count("\n") + 1
                printed = "\n".join(printed.split("\n")[:kept]) + "\n...\n"
            text = text[: block.start("body")] + printed + text[block.end("body") :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    for each in TUTORIALS:
        if not sys.argv[1:] or each.stem in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as scratch:
                _write(each, Path(scratch))
