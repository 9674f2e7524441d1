"""Attention matrices are nearly of low rank, and projections of the sequence make use of it (Wang et al. 2020).

Claims of "Linformer" (arXiv:2006.04768): figure 1, cumulative singular values of attention matrices by layer; attention
on k mixtures of keys and values in place of n; its cost in proportion to n; and what Dong et al. (2021) add, that by
its low rank tokens collapse even faster.

    P̃ = softmax(Q (E K)ᵀ / √d_k),  H = P̃ (F V),   E, F of shape (k, n);  k = n and E = F = 1 are full attention
    energy(k) = Σ_{j ≤ k} s_j² / Σ_j s_j²,  s the singular values of P

Here weights are random, not those of the paper's pretrained model, and so are tokens, or they vary slowly along the
sequence. What the best matrix of rank k would leave of P is √(1 - energy(k)); mixtures of equal weights of neighbours
come near it where neighbours are alike, and are poor for independent tokens. Projections are not trained. Faster
collapse holds for mixtures that are means: softmax then does not see what all tokens have in common, as in full
attention. Random E, as drawn at the start of a training, mix what is common with different weights, and collapse more
slowly from the second layer on. Times are those of ``benchmarks/studies/linformer.py``, stored, not taken anew.

Of the checklist: S1-62 and S1-72 to S1-74.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor

from pullback import measure
from pullback.charts.chart import PALETTE
from pullback.measure import AttentionSpec
from pullback.modules import LinformerAttention

F64 = {"dtype": torch.float64}
LENGTH, WIDTH = 256, 32
NUMPY = "one draw of NumPy"
TIMES = Path(__file__).parents[1] / "benchmarks" / "results" / "linformer.json"


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0, length=LENGTH, width=WIDTH)
    spectra(page)
    errors(page)
    collapse(page)
    times(page)


def drawn_tokens(seed: int, *, slow: bool = False) -> Tensor:
    """Tokens (1, n, D) of mean square 1: independent, or neighbours much alike."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(1, LENGTH, WIDTH, generator=make, **F64)
    if slow:
        distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None]).double()
        x = torch.exp(-((distance / 16) ** 2) / 2) @ x
        x = x / x.square().mean().sqrt()
    return x


def spectra(page: Page) -> None:
    """Cumulative squares of singular values by layer, and how skewed they are."""
    depth, seeds = page.pick(small=(4, 1), full=(12, 10))
    page.set(spectra={"layers": depth, "networks": seeds})
    spec = AttentionSpec(depth, width=WIDTH, heads=1, tokens=LENGTH, skip=True, mlp=True, norm="pre", scale=depth**-0.5)
    found = measure.rank_collapse(spec, seeds=seeds)
    energy = [layer.cumulative.value[0] for layer in found.attention]
    page.row("first layer: energy in the 64 largest of 256", 0.968, float(energy[0][63]), 0.02, source=NUMPY)
    page.row("first layer: energy in all", 1, float(energy[0][-1]), 1e-12, source="all of them")
    shares = [float(each[63]) for each in energy]
    page.at_least("least energy in the 64 largest, all layers", 0.9, min(shares), source="figure 1: nearly low rank")
    shown = [0, depth // 3, 2 * depth // 3, depth - 1]
    places = [*range(1, 33), *range(36, LENGTH + 1, 4)]
    drawn = [
        Curve(f"layer {k + 1}", places, [float(energy[k][j - 1]) for j in places], "plain", PALETTE[place])
        for place, k in enumerate(shown)
    ]
    reading = "How few singular values carry most of an attention matrix."
    page.draw(curves("spectra", "Cumulative singular values", reading, drawn, x="k", y="energy", y_range=(0, 1)))
    rows = [[k + 1, float(each.skew.value[0]), float(each.effective_rank.value[0])] for k, each in
            enumerate(found.attention)]  # fmt: skip
    page.facts("By layer", ("layer", "energy in the largest quarter", "effective rank"), rows)


def pooling(k: int, length: int = LENGTH) -> Tensor:
    """Means over k stretches of the sequence, (k, n)."""
    return torch.kron(torch.eye(k, **F64), torch.full((1, length // k), k / length, **F64))


def error_of(k: int, seed: int, *, slow: bool) -> tuple[float, float]:
    """Relative error of attention on k means, and what the best matrix of rank k leaves of P."""
    make = torch.Generator().manual_seed(seed + 500)
    attention = LinformerAttention(WIDTH, 1, LENGTH, LENGTH, "layers", bias=False).double()
    x = drawn_tokens(seed, slow=slow)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.randn(3 * WIDTH, WIDTH, generator=make, **F64) / math.sqrt(WIDTH))
        attention.out_proj.weight.copy_(torch.eye(WIDTH, **F64))
        attention.projection_keys.copy_(torch.eye(LENGTH, **F64)[None])
        full, P = attention(x, x, x)
        cut = LinformerAttention(WIDTH, 1, LENGTH, k, "layers", bias=False).double()
        for name in ("in_proj_weight", "out_proj.weight"):
            cut.get_parameter(name).copy_(attention.get_parameter(name))
        cut.projection_keys.copy_(pooling(k)[None])
        found, _ = cut(x, x, x)
    singular = torch.linalg.svdvals(P[0]).square()
    left = float((singular[k:].sum() / singular.sum()).sqrt())
    return float((found - full).norm() / full.norm()), left


def errors(page: Page) -> None:
    """Error against k, for independent tokens and slow ones, beside the singular values."""
    ks, seeds = page.pick(small=([16, 64, 256], 2), full=([4, 8, 16, 32, 64, 128, 256], 10))
    page.set(errors={"networks": seeds})
    drawn = []
    for place, (name, slow) in enumerate((("independent tokens", False), ("slow tokens", True))):
        found = torch.tensor([[error_of(k, seed, slow=slow) for k in ks] for seed in range(seeds)], **F64).mean(0)
        error, left = found.T.tolist()
        at = dict(zip(ks, error, strict=True))
        page.at_most(f"{name}: error at k = n", 1e-12, at[LENGTH], source="full attention")
        if not slow:
            for k, known in ((16, 0.896), (64, 0.751)):
                page.row(f"{name}: error of means at k = {k}", known, at[k], 0.06, source=NUMPY)
        else:
            page.at_most(f"{name}: error of means at k = 64", 0.1, at[64], source="neighbours are alike")
        drawn.append(Curve(f"{name}, means", ks[:-1], error[:-1], "line", PALETTE[place]))
        drawn.append(Curve(f"{name}, best of rank k", ks[:-1], left[:-1], "plain", PALETTE[place]))
    reading = (
        "Error of the outputs of attention on k means, and of the best P of rank k, relative; at k = n both are 0."
    )
    page.draw(curves("errors", "Error against k", reading, drawn, x="k", y="error", log_x=True, log_y=True))


def collapse(page: Page) -> None:
    """Residual by layer of pure attention: full, on means, and on random mixtures."""
    depth, seeds, k = 4, page.pick(small=4, full=20), 4
    page.set(collapse={"tokens": 16, "k": k, "networks": seeds})
    full = measure.rank_collapse(AttentionSpec(depth), seeds=seeds, spectrum=False)
    mixed = measure.rank_collapse(AttentionSpec(depth, projections=k), seeds=seeds, spectrum=False)
    pooled = []
    for seed in range(seeds):
        spec = AttentionSpec(depth, projections=k)
        model = spec.build(seed)
        with torch.no_grad():
            for name, each in model.named_parameters():
                if "projected" in name:
                    each.copy_(pooling(k, spec.tokens).expand_as(each))
        found = measure.rank_collapse(model, spec.inputs(seed + 1000), spectrum=False)
        pooled.append(found.log_relative_residual.value)
    kinds = {
        "full attention": full.log_relative_residual.value.exp().tolist(),
        "means, k = 4": torch.stack(pooled).mean(0).exp().tolist(),
        "random mixtures, k = 4": mixed.log_relative_residual.value.exp().tolist(),
    }
    whole, means, random = kinds.values()
    for layer in (1, 2, 3):
        share = means[layer - 1] / whole[layer - 1]
        page.at_most(
            f"means: residual at layer {layer} over that of full attention", 1, share, source="collapses faster"
        )
    why = "random mixtures weigh what tokens have in common differently, which softmax then sees"
    page.at_most("random mixtures: the same at layer 3", 1, random[2] / whole[2], source="collapses faster",
                 not_reproduced=why)  # fmt: skip
    layers = range(1, depth + 1)
    drawn = [Curve(name, layers, values, "line", PALETTE[place]) for place, (name, values) in enumerate(kinds.items())]
    reading = (
        "Pure attention, without skips: means of tokens lose rank before full attention does, random mixtures after."
    )
    page.draw(curves("collapse", "Linformer's own collapse", reading, drawn, x="layer", y="|res| / |X|", log_y=True))


def times(page: Page) -> None:
    """The stored benchmark: time and memory against the length, and how they grow."""
    stored = json.loads(TIMES.read_text(encoding="utf-8"))
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for name, row in stored["methods"].items():
        kind, _, length = name.partition(", n = ")
        rows.setdefault(kind, {})[int(length.replace(",", ""))] = row["min_seconds"], row["peak_bytes"] / 1e6
    lengths = sorted(rows["SDPA"])
    header = ("n", *(f"{kind}: {unit}" for kind in rows for unit in ("s", "MB")))
    table = [[n, *(each for kind in rows for each in rows[kind].get(n, (None, None)))] for n in lengths]
    page.facts("Time and memory of a forward and a backward pass (benchmarks/studies/linformer.py)", header, table)
    cut = next(kind for kind in rows if kind.startswith("Linformer"))
    last, before = lengths[-1], lengths[-2]
    for kind, known, within in ((cut, 2, 0.6), ("SDPA", 4, 0.8)):
        ratio = rows[kind][last][0] / rows[kind][before][0]
        page.row(f"{kind}: time at n = {last:,} over {before:,}, stored", known, ratio, within, source="its order in n")
    drawn = [
        Curve(kind, sorted(rows[kind]), [rows[kind][n][0] for n in sorted(rows[kind])], "line", PALETTE[place])
        for place, kind in enumerate(rows)
    ]
    reading = "Processor time, forward and backward, one thread: slopes 1 and 2."
    page.draw(curves("times", "Time against length", reading, drawn, x="n", y="seconds", log_x=True, log_y=True))


if __name__ == "__main__":
    run(build)
