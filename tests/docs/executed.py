"""Pages whose code is run: ``python -m tests.docs.executed`` writes anew what they print.

All blocks of ``python`` of a page are run in order, in one namespace and one folder; one with a title is a file
instead. A block of ``sh`` is commands. What was printed stands in the next block of ``text``: words as they are,
numbers to within one percent, or as a comment before the block says ("numbers within 20 percent"). After a line "..."
more was printed. A page without such a block may print what it likes.

What a page calls the reader's own (``model``, ``batches``) is made in a comment, ``<!-- given ... -->``, which is run
where it stands and is not shown.
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

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
BLOCK = re.compile(
    r"^(?:<!-- numbers within (?P<percent>\d+) percent -->\n)?"
    r'```(?P<kind>python|sh|text)(?: title="(?P<title>[\w./]+)")?\n'
    r"(?P<body>.*?)^```$"
    r"|^<!-- given\n(?P<given>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
PAGES = [page for page in SOURCES if any(block["kind"] for block in BLOCK.finditer(page.read_text(encoding="utf-8")))]
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
COMMANDS = {
    "python": [sys.executable],
    "pullback": [sys.executable, "-m", "pullback"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


def name_of(page: Path) -> str:
    """A page as tests and commands call it: "README", "monitor", "tutorials/layers"."""
    return str(page.relative_to(ROOT).with_suffix("")).removeprefix("docs/")


def run_page(page: Path, folder: Path, names: dict[str, object] | None = None) -> list[tuple[re.Match[str], str]]:
    """Run a page in a folder; every block of printed text with what was printed in its place."""
    names = {} if names is None else names
    names["__name__"] = "__main__"
    printed, found = "", []
    with contextlib.chdir(folder), _environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the monitor's, of trainings that go wrong on purpose
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            body = block["given"] or block["body"]
            if block["kind"] == "text":
                found.append((block, printed))
                printed = ""
            elif block["title"]:
                Path(block["title"]).parent.mkdir(exist_ok=True)
                Path(block["title"]).write_text(body, encoding="utf-8")
            elif block["kind"] == "sh":
                printed += "".join(map(_command, body.splitlines()))
            else:
                line = page.read_text(encoding="utf-8")[: block.start()].count("\n") + 1
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(body, f"{page.name}, the block in line {line}", "exec"), names)
                printed += out.getvalue()
    assert not (found and printed), f"{page.name} prints more than it shows: {printed}"
    return found


@contextlib.contextmanager
def _environment():  # type: ignore[no-untyped-def]
    """What a page sets in the environment goes with it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _command(line: str) -> str:
    """What a command prints; that of ``pullback diagnose`` may end with the answer 1."""
    name, *arguments = line.split()
    there = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gallery'}", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        [*COMMANDS[name], *arguments], env=os.environ | there, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode in (0, "diagnose" in arguments), done.stdout + done.stderr
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

    for each in PAGES:
        if not sys.argv[1:] or name_of(each) in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as scratch:
                _write(each, Path(scratch))
