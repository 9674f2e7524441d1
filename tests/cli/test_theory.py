"""``pullback theory``: pages and printed numbers, held to the functions they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from pullback import measure, modules, theory
from pullback.report.theory.charts import phase_chart
from tests.cli.pages import assert_drawn, charts_of, made, one_file
from tests.command import Done
from tests.command import run as run_command

SMALL = {
    "phase": ("--depth", "6", "--width", "40", "--seeds", "3", "--points", "3"),
    "depth": ("--depth", "6", "--width", "40", "--seeds", "3"),
    "spectrum": ("--depth", "4", "--width", "40", "--seeds", "3", "--activation", "hard_tanh"),
    "curve": ("--depth", "3", "--width", "40", "--seeds", "3", "--points", "16"),
    "training": ("--depth", "1", "--width", "60", "--seeds", "4", "--steps", "8"),
    "linearity": ("--narrowest", "8", "--points", "2", "--seeds", "2"),
    "attention": ("--depth", "4", "--width", "16", "--heads", "2", "--tokens", "6", "--seeds", "2"),
}
CHARTS = {
    "phase": ["phase", "correlation", "gradients"],
    "depth": ["length", "correlation", "gradients"],
    "spectrum": ["spectrum", "mean", "variance"],
    "curve": ["euclidean", "curvature", "gauss", "length", "gauss-length"],
    "training": ["loss", "mean", "variance"],
    "linearity": ["hessian", "signals", "kernel"],
    "attention": ["residual", "bound", "skip", "scaled"],
}


def run(*arguments: str | Path) -> Done:
    return run_command("theory", *arguments)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """All pages, and what was printed."""
    return made("theory", SMALL, tmp_path_factory.mktemp("theory"))


@pytest.mark.parametrize("kind", SMALL)
def test_a_page_is_one_file_and_the_numbers_are_printed(pages: dict[str, tuple[Path, str]], kind: str) -> None:
    path, text = pages[kind]
    one_file(path, text, CHARTS[kind])
    assert re.search(
        r"^  (phase +(ordered|chaotic)|becomes linear +(yes|no|undecided)|layers until rounding +\S+) ", text, re.M
    )
    assert re.search(r"^quantity +\S+ +theory +networks +standard error$", text, re.M)


def test_depth_shows_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    """Lines are theory's, points those of the networks of the same seeds, error bars their standard errors."""
    path, text = pages["depth"]
    known = theory.signal_profile(theory.MeanField("tanh", 1.3, 0.3), 6)
    found = measure.signal_propagation(measure.NetworkSpec("tanh", 1.3, 0.3, depth=6, width=40), seeds=3)
    charts = charts_of(path)
    for key, line, profile in (
        ("length", known.q, found.q), ("correlation", known.c, found.c), ("gradients", known.gradients, found.gradients)
    ):  # fmt: skip
        drawn, points = charts[key]["data"]
        assert drawn["y"] == pytest.approx(line.tolist(), rel=1e-6)
        assert points["y"] == pytest.approx(profile.value.tolist(), rel=1e-6)
        assert points["error_y"]["array"] == pytest.approx(profile.stderr.tolist(), rel=1e-6, abs=1e-12)
        assert (drawn["mode"], points["mode"]) == ("lines", "markers")
    ends = (profile.value + side * profile.stderr for side in (-1, 1))  # of the last chart, the gradients'
    reach = charts["gradients"]["layout"]["yaxis"]["range"]
    assert all(10 ** reach[0] < float(x) < 10 ** reach[1] for end in ends for x in end if x > 0)
    assert re.search(rf"^length +6 +{known.q[-1]:.4f}"[:-1], text, re.M)
    assert "ξ_c             16.1082" in text


def test_phase_shows_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    charts = charts_of(pages["phase"][0])
    line, points, level = charts["gradients"]["data"]
    assert set(level["y"]) == {1.0}
    for w, value in list(zip(line["x"], line["y"], strict=True))[::10]:
        profile = theory.signal_profile(theory.MeanField("tanh", w, 0.3), 6)
        assert value == pytest.approx(profile.gradients[0] ** (1 / 5), rel=1e-5)
    assert len(points["x"]) == 3
    for place, w in enumerate(points["x"]):  # networks of their own at every value, in the first layer and the last
        spec = measure.NetworkSpec("tanh", w, 0.3, depth=6, width=40)
        drawn = measure.signal_propagation(spec, seeds=3, seed=3 * place)
        g, error = float(drawn.gradients.value[0]), float(drawn.gradients.stderr[0])
        assert points["y"][place] == pytest.approx(g ** (1 / 5), rel=1e-4)
        assert points["error_y"]["array"][place] == pytest.approx(g ** (-4 / 5) * error / 5, rel=1e-4)
        _, measured = charts["correlation"]["data"][:2]
        assert measured["y"][place] == pytest.approx(float(drawn.c.value[-1]), rel=1e-4)
        assert measured["error_y"]["array"][place] == pytest.approx(float(drawn.c.stderr[-1]), rel=1e-4)
    asked = charts["phase"]["data"][-1]
    assert (asked["x"], asked["y"]) == ([1.3], [0.3])


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_the_critical_line_is_drawn_where_it_is(name: str) -> None:
    """S1-14: six and more points of the reference lines are on the drawn one."""
    rows = json.loads((Path(__file__).parents[1] / "data" / "theory.json").read_text())["critical_lines"][name]
    sigma_b = sorted({*np.linspace(0, 0.6, 7), *(row["sigma_b"] for row in rows)})
    diagram = theory.phase_diagram(name, [0.5, 1.0, 2.0], sigma_b)
    grid = (diagram.sigma_w.tolist(), diagram.sigma_b.tolist(), diagram.xi_c.tolist(), diagram.critical.tolist())
    _, line, _ = phase_chart(*grid, asked=(1.0, 0.1)).figure["data"]
    drawn = dict(zip(line["y"], line["x"], strict=True))
    assert len(rows) >= 4
    for row in rows:
        assert drawn[float(f"{row['sigma_b']:.7g}")] == pytest.approx(row["sigma_w"], abs=1e-6)


def test_attention_shows_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    """Residuals by architecture are those measured; the bound is above its networks; skips have their recursion."""
    charts, text = charts_of(pages["attention"][0]), pages["attention"][1]
    spec = measure.AttentionSpec(4, width=16, heads=2, tokens=6)
    found = measure.rank_collapse(spec, spectrum=False, seeds=2)
    assert found.start is not None
    pure, *others = charts["residual"]["data"]
    assert pure["y"][0] == pytest.approx(float(found.start.log_relative_residual.value.exp()), rel=1e-5)
    assert pure["y"][1:3] == pytest.approx(found.log_relative_residual.value.exp()[:2].tolist(), rel=1e-5)
    names = ["attention, norm", "attention, MLP", "skip", "skip, MLP, norm", "skip, MLP, 1/√L"]
    assert [each["name"] for each in others] == names
    bound, networks = charts["bound"]["data"]
    most = dict(zip(bound["x"], bound["y"], strict=True))
    assert networks["x"][:2] == bound["x"][:2] == [0, 1]
    assert networks["y"][0] == pytest.approx(most[0])
    assert all(value < most[at] for at, value in zip(networks["x"][1:], networks["y"][1:], strict=True))
    assert most[1] == pytest.approx(most[0] / 2, rel=1e-5)  # c r^2 = 1/2 at the start
    assert most[2] == pytest.approx(most[1] / 8, rel=1e-5)
    for key, scaled in (("skip", False), ("scaled", True)):
        line, points = charts[key]["data"]
        known = theory.token_profile(6, 4, mlp=0.0, scaled=scaled).residual[1:] ** 0.5
        assert line["y"] == pytest.approx(known.tolist(), rel=1e-5)
        assert points["y"] == pytest.approx(known.tolist(), abs=0.25)  # two networks of width 16
    assert re.search(r"^  paths by the skips +81 ", text, re.M)
    assert re.search(r"^  exponent of the bound +40 ", text, re.M)


def test_the_map_leaves_out_what_is_not_defined() -> None:
    """GELU's lengths grow without bound on the right; ReLU has one critical point."""
    diagram = theory.phase_diagram("gelu", [1.0, 1.35, 2.0], [0.0, 0.6])
    grid = (diagram.sigma_w.tolist(), diagram.sigma_b.tolist(), diagram.xi_c.tolist(), diagram.critical.tolist())
    chart = phase_chart(*grid, asked=(1.0, 0.1))
    cells, line, _ = chart.figure["data"]
    assert [row[2] for row in cells["z"]] == [None, None]
    assert all(value is not None for row in cells["z"] for value in row[:2])
    assert (line["y"], line["mode"]) == ([0.6], "markers")
    assert "Where it is blank, lengths grow without bound." in chart.reading
    assert "At 1 of the 2 values" in chart.summary[0]


def test_spectrum_has_a_density_or_says_why_not(pages: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    bars, line = charts_of(pages["spectrum"][0])["spectrum"]["data"]
    width = bars["x"][1] - bars["x"][0]
    assert 0.3 < sum(bars["y"]) * width <= 1 + 1e-9
    assert trapezoid(line["y"], line["x"]) == pytest.approx(sum(bars["y"]) * width, abs=0.1)
    done = run("spectrum", "--depth", "2", "--width", "30", "--seeds", "2", "--out", tmp_path / "smooth.html")
    assert done.returncode == 0, done.stderr
    assert len(charts_of(tmp_path / "smooth.html")["spectrum"]["data"]) == 1
    page = (tmp_path / "smooth.html").read_text(encoding="utf-8")
    assert "No line for the density: jacobian_density: expected an activation whose slope is 0 or one number" in page
    net = theory.MeanField("tanh", 1.3, 0.3)
    assert f"{net.jacobian_moments(2).relative_variance:.3f}" in done.stdout


def test_curve_shows_what_the_functions_say(pages: dict[str, tuple[Path, str]]) -> None:
    known = theory.MeanField("tanh", 2.5, 0.3).curve_metrics(3)
    charts = charts_of(pages["curve"][0])
    for key, values in (
        ("euclidean", known.euclidean),
        ("curvature", known.curvature),
        ("gauss-length", known.gauss_length),
    ):
        assert charts[key]["data"][0]["y"] == pytest.approx(values[1:].tolist(), rel=1e-6)


def test_linearity_is_that_of_the_networks(pages: dict[str, tuple[Path, str]]) -> None:
    """S4-21: points and errors are ``measure.linearity``'s, the line falls like 1 / sqrt(m) through the first."""
    model = modules.WideNetwork(4, [8], dtype=torch.float64)
    found = measure.linearity(model, torch.ones(1, 4, dtype=torch.float64), [8, 16], 2, tol=1e-2)
    law, points = charts_of(pages["linearity"][0])["hessian"]["data"]
    assert points["y"] == pytest.approx(found.hessian_norm.value.flatten().tolist(), rel=1e-4)
    assert points["error_y"]["array"] == pytest.approx(found.hessian_norm.stderr.flatten().tolist(), rel=1e-4)
    assert law["y"] == pytest.approx([points["y"][0], points["y"][0] / 2**0.5], rel=1e-4)
    kernel = charts_of(pages["linearity"][0])["kernel"]["data"]
    assert kernel[0]["y"] == pytest.approx([0.4644029] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["depth", "--activation", "softmax"], "expected `activation` to be one of 'tanh'"),
        (["depth", "--sigma-w", "0"], "expected `sigma_w` above 0, got 0"),
        (["depth", "--sigma-b", "-1"], "expected `sigma_b` of at least 0, got -1"),
        (["depth", "--depth", "0"], "expected a `depth` of at least 1, got 0"),
        (["depth", "--seeds", "1"], "theory: expected `--seeds` of at least 2, got 1"),
        (["phase", "--points", "1"], "theory: expected `--points` of at least 2, got 1"),
        (["spectrum", "--weights", "uniform"], "expected `weights` to be one of 'gaussian', 'orthogonal'"),
        (["curve", "--activation", "relu"], "expected a smooth activation, got relu"),
        (
            ["linearity", "--activation", "relu"],
            "linearity: expected a model that can be differentiated twice, got ReLU",
        ),
        (["linearity", "--output", "cosine"], "WideNetwork: expected `output` to be one of 'linear'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, "--out", tmp_path / "page.html")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("pullback: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_replaced_only_when_asked(pages: dict[str, tuple[Path, str]]) -> None:
    path, _ = pages["depth"]
    before = path.read_bytes()
    done = run("depth", *SMALL["depth"], "--out", path)
    assert done.returncode == 2
    assert "theory depth: expected a path that is free, got an existing file. Pass --force to replace it" in done.stderr
    assert path.read_bytes() == before
    assert run("depth", *SMALL["depth"], "--seed", "5", "--out", path, "--force").returncode == 0
    assert path.read_bytes() != before
    assert run("depth", *SMALL["depth"], "--out", path, "--force").returncode == 0
    assert path.read_bytes() == before  # the same seed, the same page


def test_usage() -> None:
    assert run("nothing").returncode == 2
    done = run("--help")
    assert done.returncode == 0
    assert all(kind in done.stdout for kind in SMALL)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", SMALL)
def test_a_page_is_drawn(pages: dict[str, tuple[Path, str]], open_page: Any, kind: str, width: int) -> None:
    assert_drawn(open_page, pages[kind][0], CHARTS[kind], width)


def test_training_lines_are_those_of_the_limit() -> None:
    """The first loss is half of E f^2 + y^2; many networks lie around the lines, at every step."""
    from pullback.cli.theory.shared import training_lines

    loss, mean, variance = training_lines(measure.NetworkSpec("erf", 1.0, 0.0, depth=1, width=200), 40, 0, 16)
    angle = np.arange(8) * (2 * np.pi / 8)
    x = np.stack([np.cos(angle), np.sin(angle)], 1) * 2**0.5
    nngp, _ = theory.infinite_width_kernels("erf", 1, 1.0, 0.0, x)
    assert loss.theory[0] == pytest.approx((np.diag(nngp).mean() + 0.5) / 2)
    assert loss.theory[-1] < loss.theory[0]
    for line in (loss, mean, variance):
        assert list(line.at) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
        pairs = zip(line.theory, line.found, line.stderr, strict=True)
        assert all(abs(known - found) < 4 * error for known, found, error in pairs), line.name


def test_shares_of_a_spectrum_are_told_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of eight values are zero, and one is far below the others."""
    from pullback.cli.theory.shared import distribution

    at = np.array([0.5, 1.0])
    density = SimpleNamespace(zero=0.25, top=0.125, squares=at, density=at)
    monkeypatch.setattr("pullback.theory.jacobian_density", lambda *_: density)
    spec: Any = SimpleNamespace(theory=lambda: None, depth=1, weights="gaussian")
    note = distribution(spec, [0.0, 0.0, 1e-12, 1.0, 1.0, 1.0, 1.0, 1.0])[3]
    assert note.startswith("Of the networks' values 25.0 percent are zero and 12.5 left of the bars; ")
    assert note.endswith("theory has 25.0 percent there and 12.5 at its largest value.")
