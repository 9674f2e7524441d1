"""How commands fail: exit codes, no traceback unless asked for, and remedies that exist."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

import pullback as pb
from pullback.cli import gallery, main
from pullback.runs import RunWriter
from tests.command import HANGS, HEARS_INTERRUPTS, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run with one number in it."""
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(0, "loss", {"loss": 2.5})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (pb.InputError("f: expected a, got b. Do c."), 2, "pullback: f: expected a, got b. Do c.\n"),
        (pb.SelfCheckError("f: expected a, got b. Do c."), 2, "pullback: f: expected a, got b. Do c.\n"),
        (KeyboardInterrupt(), 130, "pullback: stopped\n"),
        (typer.Abort(), 130, "pullback: stopped\n"),
        (PermissionError(13, "no", "/a"), 3, r"got PermissionError ([Errno 13] no: '/a'). Run it again with --debug"),
        (ZeroDivisionError(), 3, "expected no error, got ZeroDivisionError (no message). Run it again with --debug"),
        (RuntimeError("two\nlines"), 3, "got RuntimeError (two\nlines). Run it again"),
    ],
)
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_exit_codes(
    error: BaseException, code: int, words: str, debug: tuple[str, ...], recorded: Path, monkeypatch: Any
) -> None:
    """1 is left to a command's own answer; the traceback is shown with ``--debug``, before and behind the command."""

    def failing(*args: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(pb, "diagnose", failing)
    for arguments in ((*debug, "diagnose", recorded), ("diagnose", recorded, *debug)):
        done = run(*arguments)
        assert done.returncode == code
        assert words in done.stderr
        assert ("Traceback" in done.stderr) == (bool(debug) and code != 130)


def test_a_reader_that_has_left() -> None:
    """`pullback gallery | head -1` ends without a word; 1 would be a page that does not hold."""
    command = [sys.executable, "-c", "import sys\nsys.argv = ['pullback', 'gallery']\n"
               "sys.stdout.close = None\nfrom pullback.cli import gallery, main\n"
               "def leave(*_): raise BrokenPipeError\ngallery.find_pages = leave\nmain.run()"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_an_interrupt_in_a_process_of_its_own(tmp_path: Path) -> None:
    heard = HEARS_INTERRUPTS + "runpy.run_module('pullback', run_name='__main__')"
    command = [sys.executable, "-c", heard, "demo", "--epochs", "100000", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "Epoch [1/" in child.stdout.readline()
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        _, words = child.communicate(timeout=600)
    assert (child.returncode, words) == (130, "pullback: stopped\n")


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("demo", "--colour"), ("report",), ("compare", "--step", "a", "b")]
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage: pullback" in done.stderr


def test_an_unexpected_page_of_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's own codes: 1 and 3 are counted and the worst is told, 2 and 130 end the command at once."""
    pages = {}
    for number, code in ((1, 0), (2, 1), (3, 3), (4, 2), (5, 130), (6, -9)):
        pages[str(number)] = tmp_path / f"{number}.py"
        end = f"sys.exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
        pages[str(number)].write_text(f"import os, sys\n{end}\n")
    for chosen, code, last in (
        ("1", 0, None),
        ("12", 1, "gallery: 1 of 2 pages failed: 2"),
        ("123", 3, "gallery: 2 of 3 pages failed: 2, 3"),
        ("1264", 2, None),
        ("15", 130, "pullback: stopped"),
        ("6", 3, "gallery: 1 of 1 pages failed: 6"),
    ):
        monkeypatch.setattr(gallery, "find_pages", lambda chosen=chosen: {name: pages[name] for name in chosen})
        done = run("gallery", "all", "--out", tmp_path / "out")
        assert done.returncode == code, chosen
        many = len(chosen)
        told = [f"[{k}/{many}] {name}" for k, name in enumerate(chosen, 1)] if many > 1 else []
        assert done.stderr.splitlines() == told + ([last] if last else []), chosen


# Remedies


def options_of(command: Any) -> dict[str, set[str]]:
    """Command, by its full name -> its options."""
    found = {command.name or "": {text for each in command.params for text in (*each.opts, *each.secondary_opts)}}
    for name, inner in getattr(command, "commands", {}).items():
        found |= {f"{name} {rest}".strip(): options for rest, options in options_of(inner).items() if rest != name} | {
            name: options_of(inner)[inner.name or ""]
        }
    return found


APP = typer.main.get_command(main.app)
COMMANDS = options_of(APP)
EVERY = {text for options in COMMANDS.values() for text in options if text.startswith("--")} | {"--help"}
OF_OTHERS = {"--nproc-per-node", "--store", "--strict"}  # of torchrun, of a page of the gallery run by hand, of twine


def test_the_commands_are_those_there_are() -> None:
    assert {"demo", "report", "compare", "diagnose", "gallery", "theory", "theory phase"} <= set(COMMANDS)
    assert "--force" in COMMANDS["report"]
    assert "--metric" not in COMMANDS["report"]


def words_of(path: Path) -> list[str]:
    """Texts in a file of source, docstrings too; the lines of a page of documentation."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text.splitlines()
    return [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


TOLD = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "pullback").rglob("*.py"),
    *ROOT.glob("gallery/*.py"),
]


def check_names(path: Path) -> None:
    """Every command and option that a file names exists."""
    for words in words_of(path):
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", words)) - EVERY - OF_OTHERS
        assert not unknown, words
        for line in re.findall(r"(?:`|^ {4}|\n {4})pullback ((?:(?!  #)[^`\n])+)", words):
            name, *rest = line.split()
            if "|" in name or not re.fullmatch(r"[a-z]+", name) or name == "of":  # a list of commands; a formula
                continue
            assert name in COMMANDS, words
            inner = f"{name} {rest[0]}" if rest and f"{name} {rest[0]}" in COMMANDS else name
            assert set(re.findall(r"--[a-z-]+", line)) <= COMMANDS[inner] | {"--help", "--debug"}, words


def test_every_command_and_option_that_is_named_exists() -> None:
    """In errors, findings, docstrings, README and documentation."""
    for path in TOLD:
        check_names(path)


def test_arguments_that_errors_name_are_options_here(recorded: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """``pullback report`` behind ``make demo``: what the error advises can be done."""
    for argument, option in main.OPTIONS.items():
        assert any(option.strip() in COMMANDS[command] for command in ("report", "watch"))
        assert any(argument in words for path in (ROOT / "pullback/report").rglob("*.py") for words in words_of(path))
    figures = ("--figures", tmp_path / "figures", "--no-images")
    for arguments in ((), ("--out", tmp_path / "page.html", *figures)):
        assert run("report", recorded, *arguments).returncode == 0
        again = run("report", recorded, *arguments)
        assert again.returncode == 2
        assert again.stderr.endswith("got an existing file. Pass --force to replace it, or another --out.\n")
        assert run("report", recorded, *arguments, "--force").returncode == 0
    (tmp_path / "page.html").unlink()
    again = run("report", recorded, "--out", tmp_path / "page.html", *figures)
    assert "Choose another folder, or pass --force." in again.stderr
    monkeypatch.setattr("pullback.report.run.figures.find_browser", _no_browser)
    alone = run("report", recorded, "--out", tmp_path / "b.html", "--figures", tmp_path / "b")
    assert alone.returncode == 2
    assert "or pass --no-images" in alone.stderr


def _no_browser() -> str:
    from pullback._checks import input_error
    from pullback.report.run import figures

    texts = [words for words in words_of(Path(figures.__file__)) if "images=False" in words]
    raise input_error("write_figures", "a browser", "none", texts[0])


@pytest.mark.parametrize("words", ["Pass --colour to it", "run `pullback paint x`", "`pullback report RUN --step 3`"])
def test_what_does_not_exist_is_seen(words: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(words)
    with pytest.raises(AssertionError):
        check_names(tmp_path / "page.md")
