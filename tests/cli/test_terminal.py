"""The demo in a terminal and in a pipe, how it ends, and the shell's completion."""

from __future__ import annotations

import os
import re
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
from tests.command import HANGS, run

SMALL = ("demo", "--width", "8", "--depth", "1")


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


@pytest.mark.parametrize(
    ("loss", "said"), [(2.3, "2.3000"), (1234.5, "1234.5000"), (0.05, "0.05000"), (4.5112e-6, "4.511e-06")]
)
def test_a_small_loss_is_told_by_its_digits(loss: float, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    _progress(1)(1, loss)
    assert capsys.readouterr().out == f"Epoch [1/1], Loss: {said}\n"


def ending(stdout: str) -> dict[str, str]:
    """The last lines, by their first word."""
    return {word: rest for word, _, rest in (line.partition(" ") for line in stdout.splitlines()[-4:])}


def test_of_a_training_that_goes_wrong_the_next_command_puts_it_right(tmp_path: Path) -> None:
    """By the first cause's change, in a folder of its own; what else was typed stays, but --force."""
    wrong = (*SMALL, "--epochs", "6", "--optimizer", "sgd", "--lr", "60", "--force")
    done = run(*wrong, "--out", tmp_path / "my run")
    last = ending(done.stdout)
    assert "the learning rate, 60, is beyond" in last["Verdict:"]
    change = pb.diagnose(tmp_path / "my run")[0].change
    assert change is not None
    rate = f"{60 * change.value:.2g}"
    expected = (
        f"pullback demo --epochs 6 --lr {rate} --optimizer sgd --width 8 --depth 1 --out '{tmp_path}/my run-changed'"
    )
    assert last["Next:"] == expected


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
    done = subprocess.run(
        [sys.executable, "-m", "pullback"], env=there, capture_output=True, text=True, check=False, timeout=HANGS
    )
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
