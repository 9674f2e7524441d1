"""Commands that pages show: each exists, takes what it is given, and those that answer at once are run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import typer

import pullback as pb
from pullback.cli.main import app
from tests import command
from tests.docs.executed import ROOT, SOURCES

LINE = re.compile(r"^(?: {4})?pullback (?P<line>.*)$", re.MULTILINE)
INLINE = re.compile(r"`pullback (?P<line>[^`]+)`")
PLACEHOLDERS = {"RUN": "runs/first", "DIR": "runs", "PAGE": "bao2020_autoencoder", "KIND": "-h"}
AT_ONCE = {"list", "diagnose", "compare", "report"}


def shown() -> list[tuple[list[str], str]]:
    """Every command with its arguments, placeholders filled in, and the comment behind it."""
    found = {}
    for page in [*SOURCES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text(encoding="utf-8")
        for each in [*LINE.finditer(text), *INLINE.finditer(text)]:
            line, _, about = re.sub(r" ?\[[^\]']*\]|…", "", each["line"]).partition("#")
            found[tuple(PLACEHOLDERS.get(word, word) for word in line.split())] = about
    return [(list(words), about) for words, about in found.items()]


SHOWN = shown()


def parsed(words: list[str], command_alone: bool) -> typer.Context:
    """What a command makes of its arguments, without carrying it out; of a name alone no argument is asked."""
    here = typer.main.get_command(app)
    while hasattr(here, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        here = here.commands[name]  # one that is not there is a KeyError
    return here.make_context("pullback", [word for word in words if word != "-h"], resilient_parsing=command_alone)


def test_every_command_exists_and_takes_what_it_is_given() -> None:
    for words, about in SHOWN:
        context = parsed(words, words[-1] == "-h" or len(words) == 1)
        options = {option for each in context.command.params for option in each.opts}
        assert set(re.findall(r"--[a-z][a-z-]+", about)) <= options, words
        if hasattr(context.command, "commands") and about:
            kinds = re.split(r",\s*| or ", about.partition(" of a ")[0].partition(":")[0].strip())
            assert set(kinds) - {""} <= set(context.command.commands), words


def test_no_command_is_overlooked() -> None:
    assert {words[0] for words, _ in SHOWN} - {"--help"} == set(typer.main.get_command(app).commands)
    assert len(SHOWN) > 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run under each of the names that pages use."""
    folder = tmp_path_factory.mktemp("commands")
    model, loss_fn = torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss()
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    with pb.Monitor(model, loss_fn, folder / "runs" / "first", every=4) as monitor:
        for _ in range(8):
            monitor.step(x, y, loss=loss_fn(model(x), y))
    names = {name for words, _ in SHOWN for name in re.findall(r"runs/(\w+)", " ".join(words))} - {"first"}
    for name in names:
        shutil.copytree(folder / "runs" / "first", folder / "runs" / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words, _ in SHOWN if words[0] in AT_ONCE and len(words) > 1], ids=" ".join)
def test_a_command_answers(words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    done = command.run(*words)
    assert done.returncode in (0, words[0] == "diagnose"), done.stderr
    assert done.stdout
