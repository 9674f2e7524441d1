"""``pullback dynamics``: pages and printed numbers, held to the functions they come from."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback as pb
from pullback import dynamics
from pullback.cli.dynamics.pages import morse
from pullback.cli.dynamics.pages.counted_operations import operations
from pullback.cli.dynamics.pages.edge import half_square
from pullback.cli.dynamics.pages.proximal import DISTANCES, proximal_page
from pullback.cli.dynamics.pages.shared import digits, tanh_network
from pullback.report.dynamics.charts import landscape_chart
from tests.cli.pages import assert_drawn, charts_of, made, one_file
from tests.command import Done
from tests.command import run as run_command

SMALL = {
    "quadratic": ["--steps", "20", "--noise", "0.2", "--seeds", "20", "--lr", "0.015"],
    "landscape": ["beale", "--steps", "12", "--optimizers", "SGD:0.01,Adam"],
    "saddle": ["--points", "3"],
    "batch": ["--points", "2", "--seeds", "8", "--target", "0.05"],
    "hessians": ["--size", "20", "--points", "3", "--seeds", "2"],
    "scale": ["--steps", "50", "--decay", "0.2"],
    "morse": ["double_well"],
    "proximal": ["--points", "2", "--weight", "1e5"],
    "outputs": ["--steps", "12"],
    "second-order": ["--methods", "natural gradient (kernel),SGD", "--steps", "2", "--samples", "8", "--hidden", "2"],
    "edge": ["--steps", "4", "--every", "2", "--lr", "0.1", "--momentum", "0.5"],
    "parity": ["--digits", "4", "--draws", "6", "--steps", "10"],
    "forgetting": ["--forms", "diagonal", "--strengths", "100,1e-9", "--steps", "6", "--hidden", "3", "--seeds", "2"],
}
CHARTS = {
    "quadratic": ["landscape", "loss", "direction-1", "direction-2"],
    "landscape": ["landscape", "loss"],
    "saddle": ["landscape", "gradient-descent", "heavy-ball"],
    "batch": ["updates", "adam"],
    "hessians": ["semicircle", "index", "training"],
    "scale": ["norm", "rate"],
    "morse": ["landscape", "index", "net", "along-1", "along-2"],
    "proximal": ["landscape", "natural-gradient", "mirror-descent", "damped-newton"],
    "outputs": ["landscape", "first", "second", "loss", "ways", "outputs"],
    "second-order": ["steps", "work"],
    "edge": ["sharpness", "loss", "oscillation", "stabilisation"],
    "parity": ["variance", "sizes", "training"],
    "forgetting": ["first-task", "second-task", "trade"],
}
WIDE = (
    "quadratic",
    "landscape",
    "saddle",
    "batch",
    "hessians",
    "scale",
)  # of all kinds of charts, in a wide window too
WITHOUT_THEORY = ("landscape", "second-order", "forgetting")


def run(*arguments: str | Path) -> Done:
    return run_command("dynamics", *arguments)


class Pages(dict[str, tuple[Path, str]]):
    """Pages and what was printed, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> tuple[Path, str]:
        self.update(made("dynamics", {kind: SMALL[kind]}, self.folder))
        return self[kind]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("dynamics"))


@pytest.mark.parametrize(
    "kind", [kind if kind in WIDE else pytest.param(kind, marks=pytest.mark.slow) for kind in SMALL]
)
def test_a_page_is_one_file_and_the_numbers_are_printed(pages: dict[str, tuple[Path, str]], kind: str) -> None:
    path, text = pages[kind]
    one_file(path, text, CHARTS[kind])
    assert "pullback · dynamics" in path.read_text(encoding="utf-8")
    header = re.search(r"^quantity +.+ +theory +simulation +standard error$", text, re.M)
    assert (header is None) == (kind in WITHOUT_THEORY)


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


@pytest.mark.slow
def test_morse_and_outputs_lie_on_their_lines(pages: dict[str, tuple[Path, str]]) -> None:
    """S1-89, S1-90: counts of the double well in two dimensions; sums of squares and recursions are exact."""
    counts = re.findall(r"^  (minima|saddles|maxima), index \d +(\d)", pages["morse"][1], re.M)
    assert counts == [("minima", "4"), ("saddles", "4"), ("maxima", "1")]
    heights = charts_of(pages["morse"][0])["index"]["data"][0]
    assert heights["y"] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert heights["x"] == pytest.approx([-0.5] * 4 + [-0.25] * 4 + [0], abs=1e-6)
    for kind, keys in (("morse", ("along-1", "along-2")), ("outputs", ("first", "second", "loss"))):
        for key in keys:
            line, points = charts_of(pages[kind][0])[key]["data"][:2]
            known = dict(zip(line["x"], line["y"], strict=True))
            assert points["y"] == pytest.approx([known[at] for at in points["x"]], rel=1e-6, abs=1e-9)
    assert re.search(r"^  outputs beside Gauss-Newton +\d.*×10⁻¹", pages["outputs"][1], re.M)


def test_points_that_have_no_coordinates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dynamics.critical_point("monkey_saddle", [0.0, 0.0])
    monkeypatch.setattr(dynamics, "critical_points", lambda *_, **__: [found])
    with pytest.raises(pb.InputError, match="that has an index, got monkey_saddle, with 1 that are degenerate"):
        morse.morse_page("monkey_saddle", 0, 0.3)
    wells = [dynamics.critical_point("double_well", place) for place in ([0.0, 1.0], [1.0, 1.0])]
    monkeypatch.setattr(dynamics, "critical_points", lambda *_, **__: wells)
    with pytest.raises(pb.InputError, match="`point` from 0 to 2, got 3"):
        morse.morse_page("double_well", 3, 0.3)
    with pytest.raises(pb.InputError, match="got 5. Pass a smaller --reach"):
        morse.morse_page("double_well", 0, 5.0)


@pytest.mark.parametrize("distance", ["euclidean", "cosh", "logistic"])
def test_expansions_leave_out_what_is_said(distance: str) -> None:
    """As weights grow, each step is off the proximal point by the first term it leaves out; that of Newton has an order
    more where the distance is a square."""
    page = proximal_page("rosenbrock", distance, 1e6, 2)
    for line in page.lines:
        first, last = line.found
        assert last == pytest.approx(line.theory[1], rel=0.02)
        assert first / last == pytest.approx(16 if "Newton" in line.name and distance == "euclidean" else 4, rel=0.1)
    step = dynamics.proximal_step("rosenbrock", [-1.2, 1.0], 1e6, loss_order=1, distance=DISTANCES[distance]).step
    assert page.keys[0][1] == f"({step[0]:.4g}, {step[1]:.4g})"


def test_a_quadratic_leaves_nothing_out_of_newton() -> None:
    page = proximal_page("quadratic", "euclidean", 10.0, 2)
    assert [line.name.split(":")[0] for line in page.lines] == ["gradient descent", "mirror descent"]
    assert [key[0] for key in page.keys] == ["gradient descent", "mirror descent", "damped Newton", "proximal point"]
    assert page.keys[2][1] == page.keys[3][1]


@pytest.mark.slow
def test_parity_and_edge_show_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    line, points = charts_of(pages["parity"][0])["variance"]["data"][:2]
    assert line["x"] == [2, 3, 4]
    assert points["y"] == pytest.approx(line["y"], rel=1e-6)  # of four digits at most six parities have one size
    falls = [one / other for one, other in itertools.pairwise(line["y"])]
    assert all(1.2 < fall < 3 for fall in falls)
    seen, limit = charts_of(pages["edge"][0])["sharpness"]["data"]
    x, labels = digits(100)
    y, model = torch.nn.functional.one_hot(labels, 10).double(), tanh_network((64, 16, 16, 10), 0)
    curvature = pb.Hessian(model, half_square, (x, y))
    value = curvature @ (v := pb.eigenvalues(curvature, 1, tol=1e-6).vectors[:, 0])
    assert seen["y"][0] == pytest.approx(float(v @ value), rel=1e-2)
    assert (seen["x"], limit["y"]) == ([0, 2, 4], [30, 30, 30])
    for key in ("oscillation", "stabilisation"):
        line, points = charts_of(pages["edge"][0])[key]["data"][:2]
        known = dict(zip(line["x"], line["y"], strict=True))
        height = max(line["y"]) - min(line["y"])
        assert max(abs(known[x] - y) for x, y in zip(points["x"], points["y"], strict=True)) < 0.1 * height


@pytest.mark.slow
def test_without_strength_nothing_is_kept(pages: dict[str, tuple[Path, str]]) -> None:
    for key in ("first-task", "second-task"):
        form, free, _ = charts_of(pages["forgetting"][0])[key]["data"]
        assert form["x"] == [1e-9, 100]
        assert form["y"][0] == free["y"][0]
        assert form["y"][1] != free["y"][0]


@pytest.mark.slow
def test_work_is_counted(pages: dict[str, tuple[Path, str]]) -> None:
    a, b = torch.eye(5, 3), torch.ones(3, 7)
    assert operations(lambda: a @ b) == 2 * 5 * 3 * 7
    square = torch.eye(6)
    assert operations(lambda: torch.linalg.eigh(square)) == 9 * 6**3
    assert operations(lambda: torch.linalg.cholesky(square)) == pytest.approx(6**3 / 3)
    assert operations(lambda: torch.linalg.solve(square, a[:, 0].new_ones(6))) == pytest.approx(2 * 6**3 / 3)
    kernel, descent = charts_of(pages["second-order"][0])["work"]["data"]
    assert descent["x"] == list(range(1, 121))
    assert len(kernel["x"]) == 2
    assert kernel["x"][0] > 1
    steps = charts_of(pages["second-order"][0])["steps"]["data"]
    assert steps[0]["y"][1:] == kernel["y"]
    assert steps[0]["y"][0] == steps[1]["y"][0]


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
        (["morse", "three_layers"], "a landscape of two coordinates, got three_layers, of 3"),
        (["morse", "--reach", "0"], "`reach` above 0, got 0.0"),
        (["proximal", "--distance", "L1"], "`distance` to be one of 'euclidean', 'cosh', 'logistic', got 'L1'"),
        (["proximal", "--weight", "0"], "`weight` above 0, got 0.0"),
        (["proximal", "saddle", "--weight", "0.5"], "without negative curvature, got an eigenvalue"),
        (
            ["outputs", "--lr", "5", "--steps", "300"],
            "a path that stays finite, got NaN or Inf on the way. Pass a smaller",
        ),
        (["outputs", "--lr", "0"], "`lr` above 0, got 0.0"),
        (["outputs", "--parameter-lr", "inf"], "a finite `parameter-lr`, got inf"),
        (["second-order", "--methods", "SGD,BFGS"], "`methods` to be one of 'Newton', "),
        (["second-order", "--lr", "-1"], "`lr` above 0, got -1.0"),
        (["second-order", "--samples", "1"], "`--samples` of at least 2, got 1"),
        (["edge", "--momentum", "1"], "`momentum` in [0, 1), got 1.0"),
        (["edge", "--lr", "1e3", "--steps", "40"], "a rate that training survives, got 1000. Pass a smaller --lr"),
        (["edge", "--steps", "30"], "`--steps` of at least 40, got 30"),
        (["parity", "--digits", "13"], "`digits` from 3 to 12, got 13"),
        (["parity", "--activation", "sine"], "`activation` to be one of 'tanh', 'relu', "),
        (["parity", "--draws", "1"], "`--draws` of at least 2, got 1"),
        (["forgetting", "--strengths", "0,1"], "`strengths` above 0, got 0.0"),
        (["forgetting", "--forms", "whole"], "`forms` to be one of 'diagonal', 'full', 'kronecker', got 'whole'"),
        (["forgetting", "--seeds", "1"], "`--seeds` of at least 2, got 1"),
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
@pytest.mark.parametrize(("kind", "width"), [(kind, 400) for kind in SMALL] + [(kind, 1280) for kind in WIDE])
def test_a_page_is_drawn(pages: dict[str, tuple[Path, str]], open_page: Any, kind: str, width: int) -> None:
    assert_drawn(open_page, pages[kind][0], CHARTS[kind], width)
