"""The demo in a terminal and in a pipe, how it ends, and the shell's completion."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import pullback as pb
from pullback.cli.demo import _progress
from pullback.cli.ending import changed_option, next_command
from pullback.cli.main import app
from pullback.runs import RunWriter
from tests.command import run

SMALL = ("demo", "--width", "8", "--depth", "1")
HEALTHY = (*SMALL, "--epochs", "60", "--lr", "0.01")


def in_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and all that a terminal of 100 columns was sent."""
    ours, theirs = pty.openpty()
    there = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
    command = [sys.executable, "-m", "pullback", *map(str, arguments)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=there) as process:
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
        code = process.wait(120)
    os.close(ours)
    return code, seen.decode()


def lines_left(sent: str) -> list[str]:
    """What stands on the screen at the end: of what is written over itself the last."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent.replace("\r\n", "\n"))
    return [line.rsplit("\r", 1)[-1].rstrip() for line in plain.split("\n")]


@pytest.mark.slow  # a training in a process of its own
def test_a_terminal_sees_one_bar_with_the_loss(tmp_path: Path) -> None:
    code, sent = in_terminal(*HEALTHY, "--out", tmp_path / "run")
    assert code == 0, sent
    lines = lines_left(sent)
    assert len(lines) < 40
    assert "Epoch [" not in sent
    (bar,) = [line for line in lines if line.startswith("Training")]
    assert re.search(r"60/60 epochs +loss \d+\.\d{4}", bar)
    assert len(re.findall(r"\d+/60.{0,9} epochs", sent)) > 1  # the line is written over itself
    assert lines[-2].startswith("Next: pullback demo ")


def test_a_pipe_gets_some_lines_of_many_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    """Up to fifty epochs every one; of more so many, the first and the last among them; and a loss that is none."""
    for epochs, lines in ((50, 50), (1000, 50), (1, 1)):
        with _progress(epochs) as after_epoch:
            for epoch in range(1, epochs + 1):
                after_epoch(epoch, 0.5)
        told = [
            int(each)
            for each in re.findall(rf"^Epoch \[(\d+)/{epochs}\], Loss: 0.5000$", capsys.readouterr().out, re.M)
        ]
        assert len(told) == lines
        assert (told[0], told[-1]) == (1, epochs)
    _progress(1000)(2, float("nan"))
    assert capsys.readouterr().out == "Epoch [2/1000], Loss: nan\n"


def ending(stdout: str) -> dict[str, str]:
    """The last lines, by their first word."""
    return {word: rest for word, _, rest in (line.partition(" ") for line in stdout.splitlines()[-4:])}


@pytest.mark.slow  # two trainings
def test_of_a_training_that_goes_wrong_the_next_command_puts_it_right(tmp_path: Path) -> None:
    """What is printed is typed: the first run is called wrong, the second is not."""
    wrong = (*SMALL, "--epochs", "20", "--optimizer", "sgd", "--lr", "60", "--force")
    done = run(*wrong, "--out", tmp_path / "run")
    assert "the learning rate, 60, is beyond" in ending(done.stdout)["Verdict:"]
    command = shlex.split(ending(done.stdout)["Next:"])
    assert command[:2] == ["pullback", "demo"]
    assert "--force" not in command
    rate = float(command[command.index("--lr") + 1])
    change = pb.diagnose(tmp_path / "run")[0].change
    assert change is not None
    assert rate == pytest.approx(60 * change.value, rel=0.05)
    again = run(*command[1:])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run-changed" / "report.html").is_file()
    assert run("diagnose", tmp_path / "run").returncode == 1
    assert "learning-rate-too-high" not in run("diagnose", tmp_path / "run-changed").stdout


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (None, {}),
        (pb.Change("learning_rate", 0.123456), {"lr": 0.12}),
        (pb.Change("activation", "relu"), {"activation": "relu"}),
        (pb.Change("normalisation", "layer"), {"normalisation": "layer"}),
        (pb.Change("initialisation", "he"), {"init": "he"}),
        (pb.Change("initialisation", "critical"), {}),
        (pb.Change("residual"), {"residual": True}),
        (pb.Change("shuffle"), {}),
    ],
)
def test_a_change_is_an_option_where_there_is_one(change: pb.Change | None, option: dict[str, object]) -> None:
    assert changed_option(change, {"lr": 1.0}) == option


def completed(words: str) -> list[str]:
    """What bash is told to offer behind these words."""
    there = os.environ | {"_PULLBACK_COMPLETE": "complete_bash", "COMP_WORDS": words}
    there["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    done = subprocess.run([sys.executable, "-m", "pullback"], env=there, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_commands_and_options() -> None:
    assert {"demo", "diagnose", "dynamics"} <= set(completed("pullback d"))
    assert "report" not in completed("pullback d")
    assert {"--lr", "--epochs"} <= set(completed("pullback demo --"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    done = run("--show-completion")
    assert done.returncode == 0, done.stderr
    assert "_PULLBACK_COMPLETE" in done.stdout


def test_completion_is_installed_for_the_shell_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    done = run("--install-completion")
    assert done.returncode == 0, done.stderr
    assert "pullback" in (tmp_path / ".bashrc").read_text()


def test_next_of_a_fault_that_no_option_mends_is_to_read_of_it(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(1, "loss", {"loss": 2.0})
        writer.append(2, "loss", {"loss": float("nan")})
    (found,) = pb.diagnose(tmp_path / "run")
    found = [replace(found, change=None)]
    context = typer.Context(typer.main.get_command(app))
    assert next_command(context, tmp_path / "run", found) == f"pullback diagnose {tmp_path / 'run'}"
