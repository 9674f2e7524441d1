"""Tokens align with depth and starve queries and keys; skips scaled by 1/√L keep them apart (Noci et al. 2022).

Claims of "Signal propagation in transformers" (arXiv:2206.03126). With skips as they are, attention adds to what tokens
have in common in every layer: their cosine goes to 1 with depth, if slowly, and gradients of queries and keys, which
need differences between tokens, vanish beside those of the values. Branches times α̃ / √L stop it at a cosine below 1,
however deep the network.

    x ← x + α₁ attention(x),  x ← x + α₂ MLP(x),   α = α̃ / √L
    C = Σ <x_i, x_j>,  S = Σ |x_i|²,  cosine ρ = (C - S) / ((n - 1) S)
    uniform attention, linear MLP:  C ← (1 + α₁²)(1 + α₂²) C,   S ← (1 + α₂²)(S + α₁² C / n)

Lines are expectations (``theory.token_profile``), exact for uniform attention and a linear MLP; points are networks
with standard errors. With softmax attention and ReLU the numbers differ and the picture does not: that is measured, up
to ``pb.initialise`` on a transformer of torch. The paper's limit of C is written with the squares of α̃₁ and α̃₂.

Of the checklist: S1-66, S1-68 and S1-71.
"""

from __future__ import annotations

import math

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

import pullback as pb
from pullback import measure, theory
from pullback.charts.chart import PALETTE
from pullback.measure import AttentionSpec

TOKENS = 8
CLOSED = "closed form"
INFINITE = "in expectation, within 3 standard errors"
NAMES = {False: "α = 1", True: "α = 1/√L"}


def build(page: Page) -> None:
    """Fill the page."""
    page.set(seed=0, tokens=TOKENS)
    closed_forms(page)
    uniform_networks(page)
    softmax_networks(page)
    query_gradients(page)
    a_transformer_of_torch(page)


def closed_forms(page: Page) -> None:
    """Numbers for orthonormal tokens, and the limit of infinite depth."""
    scaled, plain = (theory.token_profile(TOKENS, 16, scaled=each) for each in (True, False))
    page.row("α = 1/√L: cosine after 16 layers", 0.169946, scaled.cosine[-1], 1e-6, source=CLOSED)
    page.row("α = 1: cosine after 16 layers", 0.999878, plain.cosine[-1], 1e-6, source=CLOSED)
    total, _, cosine = scaled.limits
    page.row("limit of C", 59.1124, total, 1e-4, source="e^(α̃₁² + α̃₂²) C₀")
    page.row("limit of the cosine", 0.176809, cosine, 1e-6, source=CLOSED)
    deep = theory.token_profile(TOKENS, 4096, scaled=True).cosine[-1]
    page.row("α = 1/√L: cosine after 4,096 layers", cosine, deep, 1e-4, source="the limit", computed=True)


def uniform(depth: int, width: int, scaled: bool, seed: int) -> list[tuple[float, float]]:
    """C and S after each layer of one network with uniform attention and linear maps, orthonormal tokens."""
    make = torch.Generator().manual_seed(seed)
    alpha = 1 / math.sqrt(depth) if scaled else 1.0
    x = torch.linalg.qr(torch.randn(width, TOKENS, generator=make, dtype=torch.float64)).Q.T
    found = []
    for _ in range(depth + 1):
        found.append((float(x.sum(0).square().sum()), float(x.square().sum())))
        V, W = torch.randn(2, width, width, generator=make, dtype=torch.float64) / math.sqrt(width)
        x = x + alpha * x.mean(0, keepdim=True) @ V
        x = x + alpha * x @ W
    return found


def uniform_networks(page: Page) -> None:
    """Where the recursion is exact: C and S of drawn networks, and the cosine against depth."""
    depth, width, draws = page.pick(small=(16, 64, 24), full=(32, 128, 40))
    page.set(uniform_attention={"layers": depth, "width": width, "networks": draws})
    drawn = []
    for place, scaled in enumerate((False, True)):
        known = theory.token_profile(TOKENS, depth, scaled=scaled)
        sums = torch.tensor([uniform(depth, width, scaled, seed) for seed in range(draws)], dtype=torch.float64)
        cosine = measure.Profile.over_seeds((sums[..., 0] - sums[..., 1]) / ((TOKENS - 1) * sums[..., 1]))
        if scaled:
            found = measure.Profile.over_seeds(sums[:, -1])
            for name, expected, place_of in (("C", known.total, 0), ("S", known.norms, 1)):
                page.measured(
                    f"α = 1/√L: {name} after {depth} layers", expected[-1], float(found.value[place_of]),
                    float(found.stderr[place_of]), at_most=0.6, source=INFINITE,
                )  # fmt: skip
        layers = list(range(depth + 1))
        drawn.append(Curve(f"{NAMES[scaled]}, theory", layers, known.cosine.tolist(), "plain", PALETTE[place]))
        drawn.append(
            Curve(NAMES[scaled], layers, cosine.value.tolist(), "points", PALETTE[place], cosine.stderr.tolist())
        )
    reading = "Without scaling tokens become one direction within a few layers; with it they stay where they are."
    page.draw(curves("uniform", "Cosine of tokens, uniform attention", reading, drawn, x="layer", y="cosine ρ"))


def softmax_networks(page: Page) -> None:
    """Softmax attention and ReLU: cosine behind the last layer of networks of each depth."""
    depths, seeds = page.pick(small=([2, 8, 24], 3), full=([2, 4, 8, 16, 32, 64], 6))
    page.set(softmax_attention={"depths": depths, "networks": seeds})
    drawn = []
    for place, scaled in enumerate((False, True)):
        ends = []
        for depth in depths:
            scale = 1 / math.sqrt(depth) if scaled else 1.0
            spec = AttentionSpec(depth, width=32, heads=4, tokens=TOKENS, skip=True, mlp=True, scale=scale)
            ends.append(measure.rank_collapse(spec, seeds=seeds, spectrum=False).cosine)
        values = [float(each.value[-1]) for each in ends]
        if scaled:
            page.at_most(f"softmax, α = 1/√L: largest cosine at any depth to {depths[-1]}", 0.9, max(values),
                         source="bounded away from 1")  # fmt: skip
        else:
            page.at_least(f"softmax, α = 1: cosine behind {depths[-1]} layers", 0.99, values[-1], source="goes to 1")
        errors = [float(each.stderr[-1]) for each in ends]
        drawn.append(Curve(NAMES[scaled], depths, values, "line", PALETTE[place], errors))
    reading = "Each point is a network of that many layers: scaled by its own depth, it does not matter how many."
    page.draw(
        curves(
            "softmax", "Cosine of tokens behind the last layer", reading, drawn, x="layers L", y="cosine", log_x=True
        )
    )


def gradients(model: nn.Sequential, x: Tensor) -> Tensor:
    """|dE/dW_Q| and |dE/dW_K| over |dE/dW_V| by layer, (2, L), E a random direction of the outputs."""
    direction = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    (model(x)[0] * direction).sum().backward()
    sizes = [[float(getattr(layer, name).grad.norm()) for layer in model] for name in ("query", "key", "value")]
    query, key, value = torch.tensor(sizes, dtype=torch.float64)
    return torch.stack([query / value, key / value])


def query_gradients(page: Page) -> None:
    """Gradients of queries and keys against the depth of the layer, norms behind the sums: tokens keep their size."""
    depth, seeds = page.pick(small=(12, 4), full=(32, 8))
    page.set(gradients={"layers": depth, "networks": seeds})
    drawn, ends = [], {}
    for place, scaled in enumerate((False, True)):
        scale = 1 / math.sqrt(depth) if scaled else 1.0
        spec = AttentionSpec(depth, width=32, heads=4, tokens=TOKENS, skip=True, mlp=True, norm="post", scale=scale)
        found = [gradients(spec.build(seed), spec.inputs(seed + 1000)) for seed in range(seeds)]
        shares = measure.Profile.over_seeds(torch.stack(found).mean(1).log())
        ends[scaled] = float((shares.value[-1] - shares.value[0]).exp())
        values = shares.value.exp()
        drawn.append(
            Curve(NAMES[scaled], range(1, depth + 1), values.tolist(), "line", PALETTE[place],
                  (values * shares.stderr).tolist())
        )  # fmt: skip
    page.at_most("α = 1: queries and keys over values, last layer over first", 0.2, ends[False], source="vanish")
    page.at_least("the same with α = 1/√L", 0.3, ends[True], source="do not")
    equal = AttentionSpec(1, width=32, heads=4, tokens=TOKENS)
    x = equal.inputs(3)[:, :1].expand(-1, TOKENS, -1)
    at_one = float(gradients(equal.build(0), x).max())
    page.at_most("queries and keys over values where all tokens are equal", 1e-14, at_one, source="exactly 0")
    reading = "What reaches queries and keys, over what reaches values: with tokens aligned, nothing does."
    page.draw(
        curves("gradients", "Gradients of queries and keys", reading, drawn, x="layer", y="over values'", log_y=True)
    )


def a_transformer_of_torch(page: Page) -> None:
    """``pb.initialise`` on ``nn.TransformerEncoder``, before the norm and behind it."""
    depth = page.pick(small=12, full=32)
    page.set(encoder={"layers": depth, "width": 32})
    x = torch.randn(4, TOKENS, 32, generator=torch.Generator().manual_seed(0))
    drawn = []
    for place, (first, scaled) in enumerate(((True, False), (True, True), (False, False), (False, True))):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, batch_first=True, norm_first=first)
        model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        pb.initialise(model, phase="critical" if scaled else "ordered")
        cosine = measure.rank_collapse(model, x, spectrum=False).cosine
        name = f"{'norm first' if first else 'norm last'}, {'initialised' if scaled else 'unscaled'}"
        drawn.append(Curve(name, range(1, depth + 1), cosine.value.tolist(), "line", PALETTE[place]))
        if scaled:
            page.at_most(f"{name}: cosine behind {depth} layers", 0.5, float(cosine.value[-1]), source="stays apart")
        elif not first:
            page.at_least(f"{name}: cosine behind {depth} layers", 0.9, float(cosine.value[-1]), source="goes to 1")
    reading = "Layer norm behind the sum renews every branch and collapses fastest; scaled branches keep either apart."
    page.draw(curves("encoder", "nn.TransformerEncoder by pb.initialise", reading, drawn, x="layer", y="cosine"))


if __name__ == "__main__":
    run(build)
