"""Pure attention loses rank doubly exponentially with depth, skips prevent it (Dong, Cordonnier and Loukas 2021).

Claims of "Attention is not all you need" (arXiv:2103.03404): theorem 2.2 and its corollaries, the residual against
depth by architecture (as in its figures 2 and 4), and the accuracy of paths by their length. A layer of attention makes
of a residual its cube, times a constant; an MLP enlarges the constant, layer norm does not help for long, and a skip,
by which paths may pass by, keeps tokens apart.

    X ← Σ_h P_h X V_h,   res(X) = X - 1 xᵀ with x the mean token,   |A| = √(|A|_1 |A|_∞)
    |res(X_L)| ≤ c^((3^L - 1) / 2) |res(X_0)|^(3^L),   c = 4 γ β H λ / √d_k,   β ≥ |W_QK|_1 |W_V|_{1,∞}

Networks are random, tokens independent normal ones; points are geometric means with standard errors over networks, down
to the floor of the dtype, where there is nothing but rounding. γ is taken for 1. For the paths a small transformer of
attention with skips learns to sort digits: given its attention matrices it is a sum over paths, and those that pass l
heads are put through its head alone, which tells what each length knows. Chance is one digit of ten.

Of the checklist: S1-63 to S1-65, S1-67 and S1-69 to S1-71.
"""

from __future__ import annotations

import math

import torch
from kit.charts import Curve, curves
from kit.page import Page
from kit.run import run
from torch import Tensor, nn

from pullback import measure, theory
from pullback.charts.chart import PALETTE
from pullback.measure import AttentionSpec, RankCollapse

PLACES = {"width": 64, "heads": 4, "tokens": 16}
KINDS = {  # of its figures, and layer norm
    "attention": {},
    "attention, norm": {"norm": "post"},
    "attention, MLP": {"mlp": True},
    "attention, skip": {"skip": True},
    "skip, MLP": {"skip": True, "mlp": True},
    "skip, MLP, norm": {"skip": True, "mlp": True, "norm": "post"},
}
KNOWN = "ten networks of NumPy, factor 3"
BOUND = "theorem 2.2"
DIGITS, LENGTH = 10, 8  # kinds, and how many are to be sorted


def build(page: Page) -> None:
    """Fill the page."""
    depth, seeds = page.pick(small=(8, 4), full=(24, 10))
    page.set(seed=0, layers=depth, networks=seeds, **PLACES)
    found = {name: measure.rank_collapse(AttentionSpec(depth, **PLACES, **kind), spectrum=False, seeds=seeds)
             for name, kind in KINDS.items()}  # fmt: skip
    by_depth(page, found)
    cosines(page, found)
    cubic(page)
    bounds(page)
    paths(page)


def relative(found: RankCollapse) -> tuple[list[float], list[float]]:
    """Relative residual before and behind each layer: geometric mean, and its error downwards."""
    assert found.start is not None
    logs, errors = (
        torch.cat([getattr(each.log_relative_residual, part) for each in (found.start, found)])
        for part in ("value", "stderr")
    )
    values = logs.exp()
    return values.tolist(), (values * -torch.expm1(-errors)).tolist()  # down to where a standard error of the log ends


def by_depth(page: Page, found: dict[str, RankCollapse]) -> None:
    """The figure, its numbers, and where rounding begins."""
    pure, skip, norm = (relative(found[name])[0] for name in ("attention", "attention, skip", "attention, norm"))
    for layer, known in enumerate((0.975, 0.681, 0.031, 8e-7)):
        gap = math.log10(pure[layer] / known)
        page.row(f"attention: decades from {known:g} at layer {layer}", 0, gap, math.log10(3), source=KNOWN)
    floor = found["attention"].floor
    page.at_most("attention: residual at layer 4 over the floor of float64", 1.01, pure[4] / floor, source=KNOWN)
    rest = found["attention"].relative_frobenius_residual.value[3]
    page.at_most("attention: second singular value over the first at layer 4", 1e-6, float(rest), source="rank one")
    page.row("attention, skip: residual at layer 8", 0.27, skip[8], 0.1, source="ten networks of NumPy")
    ordered = float(pure[4] < norm[4] < skip[4])
    page.row(
        "layer 4: attention below attention, norm below skip (1)", 1, ordered, 0, source="norms slow it, skips stop"
    )
    last = relative(found["skip, MLP, norm"])[0][-1]
    page.at_least(f"skip, MLP, norm: residual at layer {len(skip) - 1}", 1e-5, last, source="no collapse to rounding")
    drawn = []
    for place, (name, each) in enumerate(found.items()):
        values, errors = relative(each)
        drawn.append(Curve(name, range(len(values)), values, "line", PALETTE[place], errors))
    reading = f"Straight down is doubly exponential; below {floor:.0e} float64 has nothing but rounding."
    page.draw(
        curves("residual", "Relative residual by layer", reading, drawn, x="layer", y="|res(X)| / |X|", log_y=True)
    )


def cosines(page: Page, found: dict[str, RankCollapse]) -> None:
    """What the residual says, in another measure: mean cosine of two tokens."""
    pure = found["attention"].cosine.value
    page.row(
        "attention: cosine of two tokens at layer 4", 1, float(pure[3]), 1e-9, source="one where the residual is 0"
    )
    rise = float(pure[2:].min())
    page.at_least("attention: least cosine from layer 3 on", 0.99, rise, source="one where the residual is 0")
    drawn = [
        Curve(name, range(1, len(each.cosine) + 1), each.cosine.value.tolist(), "line", PALETTE[place],
              each.cosine.stderr.tolist())
        for place, (name, each) in enumerate(found.items())
    ]  # fmt: skip
    reading = "At 1 all tokens point one way: pure attention gets there at once, skips slow it down."
    page.draw(curves("cosine", "Cosine of two tokens by layer", reading, drawn, x="layer", y="cosine"))


def cubic(page: Page) -> None:
    """One layer on tokens with a small residual s R: what is left is of third order in s."""
    sizes, seeds = [0.1 / 2**k for k in range(5)], page.pick(small=3, full=10)
    drawn = []
    for seed in range(seeds):
        spec = AttentionSpec(1, **PLACES)
        R, common = spec.inputs(seed)[0], spec.inputs(seed + 1000)[0, :1]
        layer = spec.build(seed)
        found = [residual(layer((common + s * R)[None])[0]) for s in sizes]
        # what differs between rows of P is of order s^2, and it weighs what is of order s
        drawn.append(found)
    logs = torch.tensor(drawn).log()
    steps = (logs[:, :-1] - logs[:, 1:]) / math.log(2)
    slope = steps.mean(1)
    page.row("one layer: order of the residual behind it in that before", 3, float(slope.mean()), 0.1, source=BOUND)
    curve = Curve("networks", sizes, logs.mean(0).exp().tolist(), "line")
    page.draw(
        curves("cubic", "One layer of attention", "Slope 3.", [curve], x="size s", y="|res|", log_x=True, log_y=True)
    )


def bounds(page: Page) -> None:
    """The theorem beside what it bounds: tokens small enough for it to promise something, and what an MLP adds."""
    spec, layers = AttentionSpec(3, **PLACES), 3
    model, x = spec.build(0), spec.inputs(7)
    parts = ([getattr(layer, name) for name in ("query", "key", "value", "out")] for layer in model)
    beta = max(measure.attention_weight_norm(*weights, spec.heads) for weights in parts)
    head_dim = spec.width // spec.heads
    start = math.sqrt(0.5 * math.sqrt(head_dim) / (4 * beta * spec.heads))  # c r^2 = 1/2
    found = measure.rank_collapse(model, start / residual(x[0]) * x, spectrum=False)
    known = theory.rank_collapse_bound(start, layers, heads=spec.heads, head_dim=head_dim, weight_norm=beta)
    page.at_least("bound at layer 1 over that at layer 2", 7.99, known.residual[1] / known.residual[2], source=BOUND)
    held = [start, *found.residual.value.tolist()]
    for layer in range(1, layers + 1):
        share = held[layer] / float(known.residual[layer])
        page.at_most(f"residual at layer {layer} over its bound", 1, share, source=BOUND)
    exponents = theory.rank_collapse_bound(0.1, 5).exponents[1:]
    for layer, (expected, here) in enumerate(zip((1, 4, 13, 40, 121), exponents, strict=True), 1):
        page.row(f"exponent of the constant at layer {layer}", expected, here, 0, source=BOUND)
    with_mlp, without = (theory.rank_collapse_bound(0.1, 3, lipschitz=value).residual[3] for value in (2.0, 1.0))
    page.row("an MLP of λ = 2: the bound at layer 3, times", 8192, with_mlp / without, 1e-6, source="2^13")
    drawn = [
        Curve("bound", range(layers + 1), known.residual.tolist(), "plain"),
        Curve("network", range(layers + 1), held, "points"),
    ]
    reading = (
        "Both fall like the cube of the cube; the bound holds for any weights of this size, and so lies far above."
    )
    page.draw(curves("bound", "The bound beside a network", reading, drawn, x="layer", y="|res(X)|", log_y=True))


class Sorter(nn.Module):
    """Attention with skips and nothing between, so that outputs are sums over paths; a small network reads them."""

    def __init__(self, layers: int, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        make = torch.Generator().manual_seed(0)
        self.heads, self.layers, self.scale = heads, layers, 1 / math.sqrt(layers)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=make) / math.sqrt(width))

        self.digits, self.places = drawn(DIGITS, width), drawn(LENGTH, width)
        self.query, self.key, self.value, self.out = (
            nn.ParameterList(drawn(width, width) for _ in range(layers)) for _ in range(4)
        )
        self.first, self.last = drawn(width, 64), drawn(64, DIGITS)

    def head_of(self, x: Tensor) -> Tensor:
        """Digits a representation stands for, whatever its size."""
        return torch.relu(nn.functional.layer_norm(x, x.shape[-1:]) @ self.first) @ self.last

    def split(self, x: Tensor, W: Tensor) -> Tensor:
        """By heads."""
        return (x @ W).unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def attended(self, layer: int, P: Tensor, x: Tensor) -> Tensor:
        """All heads of a layer, with given attention matrices."""
        return self.scale * (P @ self.split(x, self.value[layer])).transpose(-3, -2).flatten(-2) @ self.out[layer]

    def by_length(self, tokens: Tensor) -> list[Tensor]:
        """Sums over all paths of each length 0, ..., L; together they are the output."""
        parts = [self.digits[tokens] + self.places]
        for layer in range(self.layers):
            x = torch.stack(parts).sum(0)
            Q, K = self.split(x, self.query[layer]), self.split(x, self.key[layer])
            P = torch.softmax(Q @ K.transpose(-1, -2) / math.sqrt(Q.shape[-1]), -1)
            through = [self.attended(layer, P, each) for each in parts]
            parts = [parts[0], *(a + b for a, b in zip(parts[1:], through[:-1], strict=True)), through[-1]]
        return parts

    def forward(self, tokens: Tensor) -> Tensor:
        """Representations of the places, (N, n, D)."""
        x = self.digits[tokens] + self.places
        for layer in range(self.layers):
            Q, K = self.split(x, self.query[layer]), self.split(x, self.key[layer])
            P = torch.softmax(Q @ K.transpose(-1, -2) / math.sqrt(Q.shape[-1]), -1)
            x = x + self.attended(layer, P, x)
        return x


def paths(page: Page) -> None:
    """Digits to sort: what paths of each length know, beside all of them together."""
    layers, steps = page.pick(small=(4, 150), full=(6, 1000))
    page.set(sorting={"layers": layers, "steps": steps, "digits": LENGTH})
    model = trained(layers, steps)
    tokens = torch.randint(DIGITS, (1000, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        parts, whole = model.by_length(tokens), model(tokens)
        right = [float((model.head_of(part).argmax(-1) == tokens.sort(1).values).float().mean()) for part in
                 (whole, *parts)]  # fmt: skip
    gap = float((torch.stack(parts).sum(0) - whole).abs().max() / whole.abs().max())
    page.at_most("paths of all lengths together, relative to the output", 1e-5, gap, source="the same sum, float32")
    page.at_least("digits in place, all paths", 0.4, right[0], source="it learns; chance is 0.1")
    longest = right[-1]
    page.at_most(f"digits in place, paths of length {layers} over all paths", 0.7, longest / right[0],
                 source="long paths alone know little")  # fmt: skip
    best = max(range(layers + 1), key=lambda length: right[1 + length])
    page.at_most("length of the paths that know most", layers - 1, best, source="short ones do the work")
    counts = theory.attention_paths(layers, model.heads)
    page.row("paths of all lengths", (1 + model.heads) ** layers, sum(counts), 0, source="(1 + H)^L")
    page.row("paths of 6 layers with 4 heads", 15625, sum(theory.attention_paths(6, 4)), 0, source="5^6")
    rows = [[length, count, right[1 + length]] for length, count in enumerate(counts)]
    page.facts("Paths by length", ("heads on the path", "paths", "digits in place"), rows)
    lengths = list(range(layers + 1))
    drawn = [
        Curve("paths of one length", lengths, right[1:], "line"),
        Curve("all paths", lengths, [right[0]] * len(lengths), "plain"),
        Curve("chance", lengths, [1 / DIGITS] * len(lengths), "plain"),
    ]
    page.draw(
        curves("paths", "What paths know, by length", "The longer, the nearer to chance.", drawn, x="heads on the path",
               y="digits in place", y_range=(0, 1))
    )  # fmt: skip


def trained(layers: int, steps: int) -> Sorter:
    """Adam on new digits at every step."""
    model, make = Sorter(layers), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        tokens = torch.randint(DIGITS, (64, LENGTH), generator=make)
        scores = model.head_of(model(tokens))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens.sort(1).values.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def residual(X: Tensor) -> float:
    """In the composite norm."""
    away = (X - X.mean(0)).detach().abs()
    return float((away.sum(0).max() * away.sum(1).max()).sqrt())


if __name__ == "__main__":
    run(build)
