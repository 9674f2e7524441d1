"""Tokens as particles on a sphere gather in clusters, in the end in one (Geshkovski et al. 2023).

Claims of "A mathematical perspective on transformers" (arXiv:2312.10794). Attention with layer norm, in many thin
layers with skips, moves tokens on the sphere by their own weighted mean. Tokens in an open hemisphere become one,
exponentially fast; in high dimension random tokens are in one almost surely, and there all pairs keep about the same
cosine, which obeys an equation of one number. For large β they first form several clusters, which last long.

    dx_i/dt = P_i Σ_j softmax_j(β <x_i, x_j>) x_j,   P_i = 1 - x_i x_iᵀ   (Q = K = V = 1)
    P(n random tokens in d dimensions are in a hemisphere) = 2^{1-n} Σ_{k<d} C(n-1, k)   (Wendel 1962)

Time is depth: layers times the size of their branches. Near the end the distance 1 - cosine falls like e^{-2t},
whatever β, because all weights are equal there. A real transformer's weights are no identities; the page is about what
attention does by itself.

Of the checklist: S1-91.
"""

from __future__ import annotations

import math

import numpy as np
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run

from pullback import theory
from pullback.charts.chart import PALETTE

HEMISPHERE = "theorem for an open hemisphere"


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0)
    hemisphere(page)
    chances(page)
    one_number(page)
    on_a_circle(page)


def on_sphere(n: int, d: int, seed: int) -> np.ndarray:
    """Random unit vectors (n, d)."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def hemisphere(page: Page) -> None:
    """Tokens in one hemisphere become one, at a rate that does not depend on β."""
    n, d, end = page.pick(small=(8, 3, 12.0), full=(32, 3, 20.0))
    page.set(hemisphere={"tokens": n, "dimensions": d})
    x, times = on_sphere(n, d, 0), np.linspace(0, end, 61)
    x[:, 0] = np.abs(x[:, 0])
    page.row("tokens of positive first entry are in a hemisphere (1)", 1, float(theory.in_hemisphere(x)), 0)
    both = np.vstack([x, -x])
    page.row("with their opposites they are not (0)", 0, float(theory.in_hemisphere(both)), 0)
    drawn = []
    for place, beta in enumerate((0.0, 1.0, 4.0)):
        found = theory.cluster_tokens(x, times, beta=beta)
        page.row(f"β = {beta:g}: least cosine at t = {end:g}", 1, found.cosines[-1], 1e-6, source=HEMISPHERE)
        page.at_most(
            f"β = {beta:g}: error of the integration", 1e-5, found.error, source="against one at a looser tolerance"
        )
        gap = 1 - found.cosines
        late = (gap < 1e-2) & (gap > 1e-6)
        rate = float(np.polyfit(times[late], np.log(gap[late]), 1)[0])
        page.row(f"β = {beta:g}: rate of ln(1 - cosine) in the end", -2, rate, 0.1, source="all weights are equal")
        shown = gap > 1e-9
        drawn.append(Curve(f"β = {beta:g}", times[shown].tolist(), gap[shown].tolist(), "line", PALETTE[place]))
    reading = "The farthest pair: a straight line is exponential; β decides when it begins, not how fast it is."
    page.draw(curves("hemisphere", "Tokens in a hemisphere", reading, drawn, x="time t", y="1 - cosine", log_y=True))


def chances(page: Page) -> None:
    """How often random tokens are in a hemisphere, by the dimension."""
    n, dimensions, draws = 12, (2, 4, 6, 8, 12), page.pick(small=60, full=1000)
    page.set(chances={"tokens": n, "draws": draws})
    found, known = [], []
    for d in dimensions:
        inside = [theory.in_hemisphere(on_sphere(n, d, 1000 * d + k)) for k in range(draws)]
        found.append(sum(inside) / draws)
        known.append(sum(math.comb(n - 1, k) for k in range(d)) / 2 ** (n - 1))
        error = math.sqrt(known[-1] * (1 - known[-1]) / draws)
        # the exact distribution is binomial; where the chance is nearly 0 or 1 one draw is more than three errors
        within = max(3 * error, 3 / draws)
        page.row(f"share in a hemisphere, d = {d}", known[-1], found[-1], within, source="Wendel's formula")
    errors = [math.sqrt(p * (1 - p) / draws) for p in known]
    drawn = [Curve("formula", dimensions, known, "plain"), Curve("draws", dimensions, found, "points", stderr=errors)]
    reading = f"{n} random tokens: from as many dimensions on they always are."
    page.draw(curves("chances", "Random tokens in a hemisphere", reading, drawn, x="dimension d", y="share"))


def one_number(page: Page) -> None:
    """Orthonormal tokens keep one cosine, and random ones in high dimension nearly do."""
    n, d = 8, page.pick(small=64, full=1024)
    page.set(one_number={"tokens": n, "dimensions": d})
    times = np.linspace(0, 6, 31)
    drawn = []
    for place, beta in enumerate((1.0, 4.0)):
        known = theory.simplex_cosine(n, times, beta=beta)
        exact = theory.cluster_tokens(np.eye(n), times, beta=beta).cosines
        gap = float(np.abs(exact - known).max())
        page.at_most(
            f"β = {beta:g}: orthonormal tokens against the equation", 1e-6, gap, source="the same, in one number"
        )
        found = theory.cluster_tokens(on_sphere(n, d, 5), times, beta=beta)
        products = found.tokens @ found.tokens.transpose(0, 2, 1)
        mean = (products.sum((1, 2)) - n) / (n * (n - 1))
        if beta == 1:
            page.row("β = 1: random tokens' mean cosine at t = 1.2, d high", known[6], mean[6], 0.3 if d < 100 else 0.1,
                     source="in high dimension", computed=True)  # fmt: skip
        drawn.append(Curve(f"β = {beta:g}, equation", times.tolist(), known.tolist(), "plain", PALETTE[place]))
        drawn.append(Curve(f"β = {beta:g}, random", times.tolist(), mean.tolist(), "points", PALETTE[place]))
    reading = f"Mean cosine of {n} random tokens in {d} dimensions, and the equation for orthonormal ones."
    page.draw(curves("cosine", "One cosine for all pairs", reading, drawn, x="time t", y="cosine"))


def groups(angles: np.ndarray) -> int:
    """Clusters on a circle: gaps between neighbours of more than 0.05."""
    ordered = np.sort(np.mod(angles, 2 * np.pi))
    gaps = np.diff(np.append(ordered, ordered[0] + 2 * np.pi))
    return max(int((gaps > 0.05).sum()), 1)


def on_a_circle(page: Page) -> None:
    """Tokens on a circle: at large β a few clusters that last, at small β one."""
    n, beta = page.pick(small=(16, 9.0), full=(32, 9.0))
    page.set(circle={"tokens": n, "beta": beta})
    times = np.concatenate([[0.0], np.geomspace(0.05, 400, 40)])
    x = on_sphere(n, 2, 3)
    found = theory.cluster_tokens(x, times, beta=beta).tokens
    angles = np.unwrap(np.arctan2(found[..., 1], found[..., 0]), axis=0)
    counts = [groups(each) for each in angles]
    page.at_least("β = 9: clusters at t = 5", 2, counts[int(np.searchsorted(times, 5))], source="several, first")
    page.at_most(
        "β = 9: clusters at t = 5, of the tokens",
        n / 2,
        counts[int(np.searchsorted(times, 5))],
        source="several, first",
    )
    least = [float((each @ each.T).min()) for each in found]
    page.at_least("β = 9: clusters at t = 400", 2, counts[-1], source="they last exponentially long in β")
    soft = theory.cluster_tokens(x, times, beta=1.0).cosines[-1]
    page.row("β = 1: least cosine at t = 400", 1, soft, 1e-4, source="one, in the end")
    rows = [[float(f"{t:.3g}"), count, cosine] for t, count, cosine in zip(times, counts, least, strict=True)][::5]
    page.facts("Clusters of tokens on a circle", ("time", "clusters", "least cosine"), rows)
    drawn = [
        Curve(f"token {k + 1}", times[1:].tolist(), angles[1:, k].tolist(), "plain",
              PALETTE[k % len(PALETTE)], legend=False)
        for k in range(n)
    ]  # fmt: skip
    reading = "Each line is a token: they join in a few clusters, which hardly move any more."
    said = (f"{n} tokens: {groups(angles[0])} clusters at first, {counts[-1]} at t = 400.",)
    page.draw(curves("circle", "Tokens on a circle", reading, drawn, x="time t", y="angle", log_x=True, summary=said))


if __name__ == "__main__":
    run(build)
