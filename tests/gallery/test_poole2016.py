"""The two pages on Poole et al. (2016): their numbers by other integrals, and measurements that see wrong weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import pullback as pb

CHAOS, CURVES = "poole2016_transient_chaos", "poole2016_exponential_expressivity"
BIAS = 0.3
Z = np.linspace(-9, 9, 301)
NORMAL = np.exp(-(Z**2) / 2) / np.exp(-(Z**2) / 2).sum()  # the trapezoidal rule, which is exact for what is analytic
pytestmark = pytest.mark.slow


def integrals(w):
    """(q*, chi_1, chi_2) by sums over a grid: another way than the package's panels and series."""

    def mean(f, q):
        return float(NORMAL @ f(math.sqrt(q) * Z))

    q = brentq(lambda q: w**2 * mean(lambda u: np.tanh(u) ** 2, q) + BIAS**2 - q, 0.01, 50, xtol=1e-14)
    slope = w**2 * mean(lambda u: np.cosh(u) ** -4, q)
    return q, slope, w**2 * mean(lambda u: (2 * np.tanh(u) / np.cosh(u) ** 2) ** 2, q)


def row(page, pattern):
    """The one row whose quantity begins like this."""
    (found,) = [row for row in page.rows if row.quantity.startswith(pattern)]
    return found


@pytest.mark.parametrize("w", [1.3, 2.5, 4.0])
def test_known_numbers(load, w):
    q, slope, bend = integrals(w)
    known, c = load(CURVES).KNOWN[w], load(CHAOS).KNOWN[w][2]
    assert known == pytest.approx((q, slope, bend), abs=1e-11)
    assert load(CHAOS).KNOWN[w][:2] == known[:2]
    u, v = math.sqrt(q) * Z[:, None], math.sqrt(q) * (c * Z[:, None] + math.sqrt(1 - c * c) * Z)
    both = NORMAL @ (np.tanh(u) * np.tanh(v)) @ NORMAL
    assert (w**2 * both + BIAS**2) / q == pytest.approx(c, abs=1e-11)


def test_critical_line(load, filled):
    """chi_1 is 1 at the number the page is held to."""
    known = row(filled(CHAOS), "σ_w where χ₁ = 1").paper
    assert integrals(float(known))[1] == pytest.approx(1, abs=1e-11)


def test_printed_numbers(filled):
    """S1-19: g^E_3 = 16.249 and N kappa^2_3 = 2.95833 at (2.5, 0.3); fixed points 3.867710 and 1.721379."""
    page = filled(CURVES)
    assert row(page, "g^E / N after 3 layers, σ_w = 2.5").here == pytest.approx(16.249478947, abs=1e-8)
    assert row(page, "N κ² after 3 layers, σ_w = 2.5").here == pytest.approx(2.958334974, abs=1e-8)
    assert row(page, "fixed point of N κ², σ_w = 2.5").here == pytest.approx(3.867709824, abs=1e-8)
    assert row(page, "fixed point of N κ², σ_w = 4.0").here == pytest.approx(1.721379949, abs=1e-8)


def test_shapes_of_the_claims(filled):
    """S1-21: the boundary's bending grows with depth in chaos, and more than in the ordered phase."""
    (chart,) = [chart for chart in filled(CURVES).charts if chart.key == "sums"]
    found = {trace["name"]: trace["y"] for trace in chart.figure["data"] if trace["name"].endswith("networks")}
    ordered, chaotic = (found[f"σ_w = {w}, networks"] for w in (1.3, 4.0))
    assert chaotic == sorted(chaotic)
    assert chaotic[-1] / chaotic[0] > 100 * ordered[-1] / ordered[0]


@pytest.mark.parametrize(
    ("name", "part"),
    [(CHAOS, "lengths"), (CHAOS, "correlations"), (CHAOS, "cut"), (CURVES, "circles"), (CURVES, "metrics")],
)
def test_networks_with_weights_a_fifth_too_large_fail(load, monkeypatch, name, part):
    """Of every section, by its measurements alone: the theory beside them is right."""
    script, page = load(name), load("kit.page")
    right = script.spec_of
    monkeypatch.setattr(script, "spec_of", lambda w, *sizes: right(1.2 * w, *sizes))
    wrong = page.Page(name, script.__doc__)
    nets = {w: pb.theory.MeanField("tanh", w, BIAS) for w in script.COLOURS}
    getattr(script, part)(wrong, *([] if part == "cut" else [nets]), 200, 10)
    with pytest.raises(pb.SelfCheckError, match=f"^{name}: expected"):
        wrong.check()


def test_boundaries_of_networks_with_weights_a_fifth_too_large_fail(load, monkeypatch):
    script, page = load(CURVES), load("kit.page")
    right = script.spec_of
    monkeypatch.setattr(script, "spec_of", lambda w, *sizes: right(1.2 * w, *sizes))
    wrong = page.Page(CURVES, script.__doc__)
    script.boundaries(wrong, {w: pb.theory.MeanField("tanh", w, BIAS) for w in script.COLOURS})
    assert not row(wrong, "share of").holds


def test_theory_of_bending_against_a_network_of_one_layer():
    """sum kappa^2 = sigma_w^2 chi_2 / chi_1 for one layer: by the matrix J' D J itself, without autograd."""
    w, width = 2.5, 1200
    net = pb.theory.MeanField("tanh", w, BIAS)
    make = torch.Generator().manual_seed(0)
    W = w / math.sqrt(width) * torch.randn(width, width, generator=make, dtype=torch.float64)
    h = math.sqrt(net.q_star) * torch.randn(width, generator=make, dtype=torch.float64)
    v = torch.randn(width, generator=make, dtype=torch.float64)
    slope = 1 - h.tanh() ** 2
    gradient = W.T @ (v * slope)
    D = v * -2 * h.tanh() * slope
    gram = W @ W.T  # the trace of (W' D W)^2 is that of (D W W')^2
    total = torch.einsum("i,ij,j,ji->", D, gram, D, gram) / gradient.square().sum()
    gauss = net.curve_metrics(1).gauss[1]
    assert float(total) == pytest.approx(w**2 * (gauss - 1) / (3 * net.q_star), rel=0.1)
