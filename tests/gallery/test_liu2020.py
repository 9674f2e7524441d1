"""Pages on the linearity of wide networks: what they measure, and that a wrong number fails them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pullback as pb
from pullback import measure
from pullback.modules import WideNetwork

pytestmark = pytest.mark.slow


def test_linearity(filled):
    """S4-21 to S4-25, S4-11, S4-12, S4-19: exponents, verdicts, the theorem and the sweep over bottlenecks."""
    found = {row.quantity: row for row in filled("liu2020_linearity").rows}
    assert all(row.holds for row in found.values())
    verdicts = [row.here for name, row in found.items() if "becomes linear" in name]
    assert verdicts == [1, 1, 1, 0, 0]
    assert found["|H|, bottleneck of 64 over 1"].here < 0.4
    assert [chart.key for chart in filled("liu2020_linearity").charts] == ["hessian", "kernel", "signals", "bottleneck"]


def test_kernel_change(filled):
    """S4-26 to S4-30, S4-10: who keeps the kernel, who stays in the ball, and what converges all the same."""
    page = filled("liu2020_kernel_change")
    found = {row.quantity: row for row in page.rows}
    assert all(row.holds for row in found.values())
    assert found["linear output: exponent of m in ΔK"].here < -0.5
    (table,) = page.tables
    assert {row[4] for row in table.rows if row[0] == "gradient descent"} == {"yes"}


def test_counterexamples(filled):
    """S4-06, S4-08, S4-09, S4-22 and S4-31: constant kernels, kinks, flat outputs, balls."""
    page = filled("liu2020_counterexamples")
    assert all(row.holds for row in page.rows)
    (chart,) = page.charts
    assert all(0 < y < 1 for trace in chart.figure["data"] for y in trace["y"])


def test_wrong_hessians_fail_the_table(load, monkeypatch):
    """Norms that are off by a power of the width."""
    script, exact = load("liu2020_linearity"), measure.linearity

    def wrong(model, x, widths=None, seeds=1, **options):
        found = exact(model, x, widths, seeds, **options)
        slope = found.slopes["hessian_norm"]
        moved = measure.Slope(slope.value + 0.25, slope.low + 0.25, slope.high + 0.25)
        return dataclasses.replace(found, slopes=found.slopes | {"hessian_norm": moved})

    monkeypatch.setattr(measure, "linearity", wrong)
    page = load("kit.page").Page("liu2020_linearity", script.__doc__)
    script.table(page, script.over_widths([16, 32], dict.fromkeys(script.SEEDS, 2)))
    with pytest.raises(pb.SelfCheckError, match=r"liu2020_linearity: expected -0.5 .* 'one hidden layer: exponent"):
        page.check()


def test_a_wrong_bound_fails(load, monkeypatch):
    script = load("liu2020_counterexamples")
    monkeypatch.setattr(script.theory, "kernel_change_bound", lambda *_: 1e-4)
    page = load("kit.page").Page("liu2020_counterexamples", script.__doc__)
    script.change_within(page)
    assert not page.rows[0].holds


def test_paths_are_of_the_weights_given(load):
    """A path is that of the model's own training: distance and drift by hand."""
    script = load("liu2020_kernel_change")
    model = script.WideNetwork(script.DIM, [8], seed=1, **script.F64)
    start = model.layers[0].weight.detach().clone()
    path = script.trained(model, 3, 3)
    assert path.points[-1].distance == pytest.approx(float((model.layers[0].weight.detach() - start).norm()))
    x, y = script.data()
    assert torch.allclose(x.square().mean(1), torch.ones(script.SAMPLES, **script.F64))
    assert path.points[-1].loss == pytest.approx(float(script.half(model(x), y).mean().detach()))


def test_wider_bottlenecks_are_more_linear():
    """S4-24: |H| between two layers of 512 falls with the bottleneck's width, over 64 to less than half."""
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    networks = [[WideNetwork(4, [512, b, 512], seed=s, dtype=torch.float64) for s in range(4)] for b in (1, 8, 64)]
    found = [[float(measure.linearity(m, 2 * x / x.norm(), tol=1e-2).hessian_norm.value) for m in row]
             for row in networks]  # fmt: skip
    one, eight, many = torch.tensor(found).mean(1).tolist()
    assert one > eight > many
    assert many < one / 2
