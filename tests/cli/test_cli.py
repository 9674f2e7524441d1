"""The command line as a user meets it. S0-25, S0-27, S0-28, S0-44 to S0-47."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pullback as pb
from pullback._version import __version__
from pullback.advisor import verdict as verdict_of
from pullback.cli import training
from pullback.functional import datasets
from pullback.runs import RunWriter
from tests.command import HANGS, run, run_alone
from tests.functional.test_datasets import write_cifar

REPORT = "report.html"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short demo on the digits, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "run"
    done = run_alone("demo", "--epochs", "34", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_prints_what_the_note_s_script_prints(demo: tuple[Path, str]) -> None:
    """S0-45 to S0-47: the loss of each epoch, the accuracy, the shapes of the layer Jacobians."""
    out, text = demo
    losses = [float(m) for m in re.findall(r"^Epoch \[\d+/34\], Loss: (\d\S+)$", text, re.M)]
    assert len(losses) == 34
    assert losses[0] == pytest.approx(2.3026, abs=0.05)  # the first epoch starts at ln 10
    assert losses[-1] < 0.5
    assert "Finished Training" in text
    accuracy = float(re.search(r"Accuracy on test set: (\d+\.\d{2})%", text).group(1))  # type: ignore[union-attr]
    assert accuracy > 85
    shapes = re.findall(r"^Jacobian between Layer (\d) and Layer (\d): (\d+x\d+)$", text, re.M)
    assert [shape for _, _, shape in shapes] == ["128x64", *["128x128"] * 4, "10x128"]
    for label in (
        "M1 (mean)",
        "conditioning M2/M1^2",
        "share of conflicting pairs",
        "gradient flow",
        "limit of the sharpness",
    ):
        assert label in text
    assert f"Report: {out / REPORT}" in text
    assert "\x1b[" not in text  # plain text when the output is piped


def test_the_demo_ends_with_the_verdict_what_was_looked_for_and_the_next_command(demo: tuple[Path, str]) -> None:
    out, text = demo
    verdict, looked, report, following = text.splitlines()[-4:]
    assert verdict == f"Verdict: {verdict_of(out)}."
    assert re.match(r"Looked for \d+ kinds of fault in 9 measurements: of the data, the loop, ", looked)
    assert report == f"Report: {out / REPORT}"
    assert following == f"Next: pullback demo --epochs 34 --lr 3.0 --optimizer sgd --out {out}-too-fast"


def test_record_and_report_of_the_demo(demo: tuple[Path, str]) -> None:
    """S0-25: 102 steps at every 50th are two measurements and the end; the page is one self-contained file."""
    out, _ = demo
    loaded = pb.load_run(out)
    assert [r.step for r in loaded.of("kernel")] == [1, 2, 4, 8, 16, 32, 50, 100, 102]  # and the end
    assert len(list(loaded.of("epoch"))) == 34
    assert not [r for r in loaded.records if r.error]
    page = (out / REPORT).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    seeds = {"first": 0, "again": 0, "other": 1}
    texts = {
        name: run(
            "demo", "--epochs", "2", "--width", "16", "--depth", "2", "--seed", str(seed), "--out", tmp_path / name
        ).stdout
        for name, seed in seeds.items()
    }
    timeless = {name: re.sub(r"Watching took .*|Report: .*|Next: .*", "", text) for name, text in texts.items()}
    assert timeless["first"] == timeless["again"]
    assert timeless["first"].count("Epoch") == 2
    assert re.findall("Epoch.*", texts["other"]) != re.findall("Epoch.*", texts["first"])


def test_every_option_is_taken(tmp_path: Path) -> None:
    """S0-29 to S0-31: activation, normalisation, skip, dropout, initialisation, optimiser, width, depth."""
    options = "--epochs 2 --lr 0.01 --optimizer momentum --activation tanh --init orthogonal --width 32 --depth 3"
    more = "--normalisation batch --dropout 0.1 --residual --seed 3"
    done = run("demo", *options.split(), *more.split(), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    layers = pb.load_run(tmp_path / "run").meta["model"]["layers"]
    assert layers == [f"layers.{i}.{part}" for i in range(3) for part in ("linear", "norm")] + ["layers.3"]
    assert "Jacobian between Layer 2 and Layer 3: 32x32" in done.stdout


def test_own_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    np.savez(tmp_path / "mine.npz", x=rng.normal(size=(300, 5)) + 3 * y[:, None], y=y)
    done = run("demo", "--data", tmp_path / "mine.npz", "--epochs", "60", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Jacobian between Layer 0 and Layer 1: 128x5" in done.stdout
    assert pb.load_run(tmp_path / "run").meta["data"].startswith("mine, 240 training and 60 test samples")


def test_cifar10_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-44, S0-47: the binary files (each of 100 images here), the note's network and its Jacobians."""
    monkeypatch.setattr(datasets, "CIFAR_RECORDS", 100)
    write_cifar(tmp_path)
    done = run(
        "demo",
        "--data",
        "cifar10",
        "--data-root",
        tmp_path,
        "--epochs",
        "1",
        "--width",
        "128",
        "--out",
        tmp_path / "run",
    )
    assert done.returncode == 0, done.stderr
    shapes = re.findall(r"^Jacobian between Layer \d and Layer \d: (\d+x\d+)$", done.stdout, re.M)
    assert shapes == ["128x3072", *["128x128"] * 4, "10x128"]
    assert pb.load_run(tmp_path / "run").meta["model"]["num_params"] == 460_682


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--data", "mnist"], "`--data` to be digits, cifar10 or a file ending in .npz, got 'mnist'"),
        (["demo", "--optimizer", "lion"], "`--optimizer` to be one of 'adam', 'sgd', 'momentum', 'rmsprop', 'adagrad'"),
        (["demo", "--activation", "rleu"], "`activation` to be one of 'relu', 'leaky_relu', 'tanh'"),
        (["demo", "--init", "kaiming"], "`scheme` to be one of 'default', 'he', 'xavier', 'gaussian', 'orthogonal'"),
        (["demo", "--normalisation", "group"], "`normalisation` to be one of 'none', 'batch', 'layer'"),
        (["demo", "--controller", "pid"], "`--controller` to be one of 'none', 'curvature', got 'pid'"),
        (["demo", "--controller", "curvature", "--optimizer", "adagrad"], "expected SGD, Adam or AdamW, got Adagrad"),
        (["demo", "--lr", "0"], "`--lr` above 0, got 0"),
        (["demo", "--epochs", "0"], "`--epochs` above 0, got 0"),
        (["demo", "--width", "-1"], "`--width` above 0, got -1"),
        (["demo", "--dropout", "1.5"], "`dropout` from 0 to below 1, got 1.5"),
        (
            ["demo", "--data", "cifar10", "--data-root", "nowhere"],
            "a file of CIFAR-10's binary version, got nothing at",
        ),
        (["demo", "--data", "none.npz"], "expected a file, got nothing at none.npz"),
        (["report", "nowhere"], "a run folder with run.json, got none"),
        (["diagnose", "nowhere"], "a run folder with run.json, got none"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    if arguments[0] == "demo":
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("pullback: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_process_ends_with_one_sentence() -> None:
    done = run_alone("report", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("pullback: ")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    done = run_alone("--debug", "report", "nowhere")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_unknown_options_are_usage_errors() -> None:
    assert run("demo", "--colour", "red").returncode == 2
    assert run("nothing").returncode == 2


def test_a_run_is_replaced_only_when_asked(demo: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = demo
    kept = (out / "records.jsonl").read_bytes()
    done = run("demo", "--epochs", "1", "--out", out)
    assert done.returncode == 2
    assert "one that holds a run. Pass --force to replace a run, --on-exists number" in done.stderr
    assert (out / "records.jsonl").read_bytes() == kept
    done = run("demo", "--data", "nothing.npz", "--out", out)  # before data are read
    assert "one that holds a run" in done.stderr
    assert run("demo", "--data", "nothing.npz", "--out", out, "--force").returncode == 2
    assert (out / "records.jsonl").read_bytes() == kept  # nor is it removed for data that cannot be read
    assert "'refuse', 'number'" in run("demo", "--out", out, "--on-exists", "replace").stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run("demo", "--epochs", "1", "--out", tmp_path / "mine", "--force")
    assert done.returncode == 2
    assert "one that is not empty" in done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    small = ("demo", "--width", "8", "--depth", "1", "--out", tmp_path / "run")
    assert run(*small, "--epochs", "1").returncode == 0
    assert run(*small, "--epochs", "2", "--force").returncode == 0
    assert len(list(pb.load_run(tmp_path / "run").of("epoch"))) == 2
    beside = run(*small, "--epochs", "1", "--on-exists", "number")
    assert beside.returncode == 0, beside.stderr
    assert f"Report: {tmp_path / 'run-2' / REPORT}" in beside.stdout
    assert len(list(pb.load_run(tmp_path / "run").of("epoch"))) == 2


DIVERGING = ("demo", "--optimizer", "sgd", "--lr", "1e6", "--epochs", "40")


def test_divergence_is_said_and_recorded(tmp_path: Path) -> None:
    """A first step of a million gradients overflows whatever the rounding."""
    done = run(*DIVERGING, "--out", tmp_path / "alone")
    assert done.returncode == 1
    assert "expected a finite training loss, got NaN or infinity. Lower --lr." in done.stderr
    assert "Training diverged" in done.stdout
    assert "critical: divergence" in done.stdout
    assert "Lower the learning rate" in done.stdout
    assert (tmp_path / "alone" / REPORT).is_file()


@pytest.mark.slow  # a training
def test_divergence_is_steered(tmp_path: Path) -> None:
    """The controller begins where it is stable."""
    done = run(*DIVERGING, "--controller", "curvature", "--out", tmp_path / "steered")
    assert done.returncode == 0, done.stderr
    losses = [float(m) for m in re.findall(r"^Epoch \[\d+/40\], Loss: (\d\S+)$", done.stdout, re.M)]
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(10), abs=0.05)
    assert losses[-1] < math.log(5)  # 0.6 to 1.1 with other seeds, which is how far other rounding takes it


def test_a_controller_is_taken(tmp_path: Path) -> None:
    """Where the rate alone would be far too high, a few steered steps stay finite."""
    done = run(
        *DIVERGING[:-1], "2", "--controller", "curvature", "--width", "16", "--depth", "1", "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupt_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    done = run("demo", "--out", tmp_path / "run")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_report_and_diagnose(demo: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = demo
    done = run("report", out, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()
    for again in (run("report", out, "--out", tmp_path / "page.html"), run("report", out)):
        assert again.returncode == 2
        assert "got an existing file. Pass --force to replace it, or another --out." in again.stderr
    assert run("report", out, "--out", tmp_path / "page.html", "--force").returncode == 0
    done = run("diagnose", out)
    assert done.returncode == 0, done.stderr  # a healthy run has nothing above "info"
    told, *lines = done.stdout.splitlines()
    assert told == f"Verdict: {verdict_of(out)}."
    assert all(line.startswith(("info: ", "No findings")) for line in lines)


def test_diagnose_exits_with_one_when_it_finds_something(tmp_path: Path) -> None:
    """S0-28 in its first form: a deep sigmoid network vanishes, and is told what to change."""
    options = "--activation sigmoid --depth 8 --epochs 17 --optimizer sgd"
    done = run("demo", *options.split(), "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = run("diagnose", tmp_path / "run")
    assert done.returncode == 1, done.stdout
    assert "warning: vanishing-gradients" in done.stdout


def test_diagnose_prints_the_same_list_as_json(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", {}) as writer:
        writer.append(0, "loss", {"loss": 2.0})
        writer.append(9, "loss", {"loss": float("inf")})
    done = run("diagnose", tmp_path / "run", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found == pb.load_run(tmp_path / "run").findings
    assert [each["name"] for each in found] == ["divergence"]
    assert {"name", "severity", "layer", "steps", "evidence", "threshold", "source", "action", "summary"} < set(
        found[0]
    )
    assert found[0]["because"] == []
    assert pb.Change.from_record(found[0]["change"]) == pb.diagnose(tmp_path / "run")[0].change
    assert run("diagnose", tmp_path / "run", "--ignore", "dead-units").returncode == 1
    done = run("diagnose", tmp_path / "run", "--ignore", "divergence", "--ignore", "dead-units")
    assert done.returncode == 0
    assert done.stdout.endswith("Ignored, as asked: divergence; not found: dead-units.\n")
    done = run("diagnose", tmp_path / "run", "--json", "--ignore", "divergence")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "Ignored, as asked: divergence.\n")
    done = run("diagnose", tmp_path / "run", "--ignore", "divergenze")
    assert done.returncode == 2
    assert "`ignore` of names among not-measured, non-finite-data, " in done.stderr
    assert "step 9.\ncritical: divergence" in run("diagnose", tmp_path / "run").stdout


def test_list_has_a_line_for_each_run(tmp_path: Path) -> None:
    """At any depth; of the loop's own losses where it gave them; what cannot be read is said, and the rest is shown."""
    for name, losses in (("b", [2.0, float("inf")]), ("deep/a", [2.0, 1.5])):
        with RunWriter(tmp_path / name, {}) as writer:
            for step, loss in enumerate(losses):
                writer.append(step, "loss", {"loss": loss})
    with RunWriter(tmp_path / "c", {}) as writer:
        writer.course.add(7, {"loss": 0.25})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    done = run("list", tmp_path)
    assert done.returncode == 0, done.stderr
    head, *lines = [line.split() for line in done.stdout.splitlines()]
    assert head == ["run", "steps", "loss", "verdict"]
    assert [line[:3] for line in lines] == [
        ["b", "1", "inf"],
        ["c", "7", "0.25"],
        ["damaged", "-", "-"],
        ["deep/a", "1", "1.5"],
    ]
    assert " ".join(lines[0][3:]).startswith("Diverges from step 1: the loss left the finite numbers")
    assert " ".join(lines[1][3:]).startswith("Reached a loss of 0.25 at step 7: ")
    assert " ".join(lines[2][3:]).startswith("cannot be read: load_run(")
    assert run("list", tmp_path / "b").stdout.splitlines()[1].split()[:3] == ["b", "1", "inf"]


@pytest.mark.parametrize(("folder", "got"), [("nowhere", "no folder"), (".", "none")])
def test_list_of_nothing(folder: str, got: str, tmp_path: Path) -> None:
    done = run("list", tmp_path / folder)
    assert done.returncode == 2
    assert re.search(rf"list: expected runs below .*, got {got}\. Pass the folder that Monitor", done.stderr)


def test_version_and_help_are_quick() -> None:
    """``--help`` answers in half a second: heavy imports happen inside commands. (Measured in benchmarks.)"""
    assert run("--version").stdout.strip() == f"pullback {__version__}"
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "report", "diagnose"))
    assert "--install-completion" in done.stdout
    alone = run()
    assert done.stdout.strip() in alone.stdout + alone.stderr
    assert run("demo", "--help").returncode == 0
    assert run("-h").stdout == done.stdout
    assert run("theory", "phase", "-h").stdout == run("theory", "phase", "--help").stdout
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, json, pullback.cli.main; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANGS,
    )
    modules = set(json.loads(loaded.stdout))
    assert not modules & {"torch", "numpy", "zarr", "plotly", "scipy"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, pullback; assert 'torch' not in sys.modules; assert pullback.backward_kernel; "
        "print([m for m in ('zarr', 'plotly', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS)
    assert done.stdout.strip() == "[]"
