"""``pullback dynamics``: pages and printed numbers, held to the functions they come from."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from pullback import dynamics
from pullback.report.dynamics_charts import landscape_chart
from tests.cli.pages import charts_of, drawn, made, one_file
from tests.command import Done
from tests.command import run as run_command

SMALL = {
    "quadratic": ["--steps", "20", "--noise", "0.2", "--seeds", "20", "--lr", "0.015"],
    "landscape": ["beale", "--steps", "12", "--optimizers", "SGD:0.01,Adam"],
    "saddle": ["--points", "3"],
    "batch": ["--points", "2", "--seeds", "8", "--target", "0.05"],
    "hessians": ["--size", "20", "--points", "3", "--seeds", "2"],
    "scale": ["--steps", "50", "--decay", "0.2"],
}
CHARTS = {
    "quadratic": ["landscape", "loss", "direction-1", "direction-2"],
    "landscape": ["landscape", "loss"],
    "saddle": ["landscape", "gradient-descent", "heavy-ball"],
    "batch": ["updates", "adam"],
    "hessians": ["semicircle", "index"],
    "scale": ["norm", "rate"],
}


def run(*arguments: str | Path) -> Done:
    return run_command("dynamics", *arguments)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """All pages, and what was printed."""
    return made("dynamics", SMALL, tmp_path_factory.mktemp("dynamics"))


@pytest.mark.parametrize("kind", SMALL)
def test_a_page_is_one_file_and_the_numbers_are_printed(pages: dict[str, tuple[Path, str]], kind: str) -> None:
    path, text = pages[kind]
    one_file(path, text, CHARTS[kind])
    assert "pullback · dynamics" in path.read_text(encoding="utf-8")
    header = re.search(r"^quantity +.+ +theory +simulation +standard error$", text, re.M)
    assert (header is None) == (kind == "landscape")


def test_a_quadratic_without_noise_is_the_trajectory(tmp_path: Path) -> None:
    """S0-41 on a page: alpha = 100, beta = 1, lr = 0.02, factors -1 and 0.98; each method's points on its lines."""
    path = tmp_path / "page.html"
    done = run("quadratic", "--lr", "0.02", "--steps", "10", "--out", path)
    assert re.search(r"^  h = 100 +critical ", done.stdout, re.M)
    assert re.search(r"^distance along h = 1 +10 +0\.8171 +0\.8171 ", done.stdout, re.M)
    assert re.search(r"^distance along h = 100 +9 +(?:-|−)1 ", done.stdout, re.M)
    for method in ("gradient_descent", "heavy_ball", "nesterov"):
        done = run("quadratic", "--method", method, "--steps", "12", "--out", path, "--force")
        assert done.returncode == 0
        for key in ("loss", "direction-1", "direction-2"):
            line, points = charts_of(path)[key]["data"][:2]
            known = dict(zip(line["x"], line["y"], strict=True))
            for at, value in zip(points["x"], points["y"], strict=True):
                assert value == pytest.approx(known[at], rel=1e-6, abs=1e-9)


def test_saddle_and_scale_show_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    known = dynamics.near_saddle(dynamics.Quadratic([1.0, -1.0]), [1.0, 0.01], lr=0.1)["gradient_descent"].steps
    line, points = charts_of(pages["saddle"][0])["gradient-descent"]["data"][:2]
    assert line["y"][1] == known
    assert points["y"] == line["y"]
    growth = charts_of(pages["scale"][0])["norm"]["data"]
    assert growth[0]["y"][-1] == pytest.approx(
        float(dynamics.scale_invariant_growth(0.1, 1.0, 50, weight_decay=0.2).squared_norm[-1]), rel=1e-6
    )


def test_landscape_records_runs(tmp_path: Path) -> None:
    done = run("landscape", "plateau", "--steps", "4", "--optimizers", "SGD:0.5,LBFGS", "--record", tmp_path / "runs",
               "--out", tmp_path / "page.html")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["LBFGS-1", "SGD-0.5"]
    assert pb.load_run(tmp_path / "runs" / "SGD-0.5").series("loss", "loss")[0] == [0, 1, 2, 3, 4]
    assert run_command("compare", *[tmp_path / "runs" / name for name in names]).returncode == 0
    assert run("landscape", "three_layers", "--steps", "3", "--out", tmp_path / "three.html").returncode == 0
    assert list(charts_of(tmp_path / "three.html")) == ["loss"]


def test_a_trajectory_ends_where_the_map_does() -> None:
    z = [[1.0, 2.0], [3.0, 4.0]]
    paths = {"one": ([0.0, 0.5, 2.0, 0.5], [0.0, 0.5, 0.5, 0.5]), "two": ([9.0, 0.0], [0.0, 0.0])}
    chart = landscape_chart([0.0, 1.0], [0.0, 1.0], z, paths, [])
    lengths = {trace["name"]: len(trace["x"]) for trace in chart.figure["data"] if "name" in trace}
    assert lengths["one"] == 2
    assert lengths["two"] == 1
    assert chart.figure["data"][0]["z"] == z
    decades = landscape_chart([0.0, 1.0], [0.0, 1.0], z, paths, [[0.5, 0.5]]).figure["data"][0]["z"]
    assert decades[1] == pytest.approx([math.log10(2), math.log10(3)], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["landscape", "hill"], "`name` to be one of 'quadratic', "),
        (["landscape", "--optimizers", "Sgd"], "`optimizers` to be one of 'SGD', 'momentum', "),
        (["landscape", "--optimizers", "SGD:fast"], "`--optimizers`: numbers by commas, got 'fast'"),
        (["landscape", "--optimizers", "SGD:-1"], "settings the optimizer takes, got Invalid learning rate: -1.0"),
        (["landscape", "--steps", "1"], "dynamics: expected `--steps` of at least 2, got 1"),
        (["quadratic", "--curvatures", "a"], "`--curvatures`: numbers by commas, got 'a'"),
        (["quadratic", "--method", "newton"], "`method` to be one of 'gradient_descent', "),
        (["saddle", "--curvature", "1"], "a direction of negative curvature"),
        (["batch", "--noise", "0"], "`noise` above 0, got 0.0"),
        (["scale", "--lr", "0"], "`lr` above 0, got 0.0"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, "--out", tmp_path / "page.html")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    done = run("scale", "--out", path)
    assert done.returncode == 2
    assert "dynamics scale: expected a path that is free, got an existing file. Pass --force" in done.stderr
    assert path.read_text() == "mine"


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", SMALL)
def test_a_page_is_drawn(pages: dict[str, tuple[Path, str]], open_page: Any, kind: str, width: int) -> None:
    drawn(open_page, pages[kind][0], CHARTS[kind], width)
