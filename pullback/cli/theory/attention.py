"""The page of ``pullback theory attention``: tokens of random networks by architecture, beside what is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pullback.charts.chart import Chart
    from pullback.measure import AttentionSpec, RankCollapse
    from pullback.report.theory.charts import Line
    from pullback.report.theory.page import TheoryPage

SMALL = 0.01  # of tokens' entries, where softmax is nearly uniform, as ``theory.token_profile`` has it
LEAST = 1e-30  # of the bound, that is drawn
SHARE = 0.5  # c r^2 of the tokens the bound is drawn for: below 1 it promises something


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        kinds: architecture -> networks with tokens of entries N(0, 1).
        bounded: pure attention with tokens small enough for the bound.
        start: largest residual of those.
        constant: c of the bound, largest of the networks.
        skips: "skip" and "skip, 1/√L" -> networks with small tokens.
    """

    kinds: dict[str, RankCollapse]
    bounded: RankCollapse
    start: float
    constant: float
    skips: dict[str, RankCollapse]


def measured(spec: AttentionSpec, seeds: int, seed: int, say: Callable[[str], None]) -> Measured:
    """Draw and measure all networks."""
    import torch

    from pullback import measure

    root = 1 / math.sqrt(spec.depth)
    kinds = {
        "attention": spec,
        "attention, norm": replace(spec, norm="post"),
        "attention, MLP": replace(spec, mlp=True),
        "skip": replace(spec, skip=True),
        "skip, MLP, norm": replace(spec, skip=True, mlp=True, norm="post"),
        "skip, MLP, 1/√L": replace(spec, skip=True, mlp=True, scale=root),
    }
    collapses = {}
    for name, each in kinds.items():
        say(f"networks: {name}")
        collapses[name] = measure.rank_collapse(each, spectrum=False, seeds=seeds, seed=seed)
    say("networks with small tokens")
    constant = max(_constant(spec, number) for number in range(seed, seed + seeds))
    x = spec.inputs(seed)
    largest = measure.rank_collapse(spec, x, spectrum=False, seeds=seeds, seed=seed).start
    assert largest is not None
    size = math.sqrt(SHARE / constant) / float(largest.residual.value[0])
    bounded = measure.rank_collapse(spec, x * size, spectrum=False, seeds=seeds, seed=seed)
    small = SMALL * torch.cat([spec.inputs(seed + k) for k in range(4)])
    skips = {
        name: measure.rank_collapse(
            replace(spec, skip=True, scale=scale), small, spectrum=False, seeds=seeds, seed=seed
        )
        for name, scale in (("skip", 1.0), ("skip, 1/√L", root))
    }
    return Measured(collapses, bounded, size * float(largest.residual.value[0]), constant, skips)


def _constant(spec: AttentionSpec, seed: int) -> float:
    """The bound's constant for a network, the largest of its layers'."""
    from pullback.measure import attention_weight_norm

    beta = 0.0
    for layer in spec.build(seed):
        query, key, value, out = (getattr(layer, name) for name in ("query", "key", "value", "out"))
        beta = max(beta, attention_weight_norm(query, key, value, out, spec.heads))
    return 4 * beta * spec.heads / math.sqrt(spec.width // spec.heads)


def attention_page(spec: AttentionSpec, networks: Measured, seeds: int) -> TheoryPage:
    """The page with its charts."""
    from pullback import theory
    from pullback.report.theory.page import TheoryPage

    bound, lines = _lines(spec, networks)
    limit = theory.token_profile(spec.tokens, spec.depth, mlp=0.0, scaled=True).limits[2]
    pure = networks.kinds["attention"]
    first = pure.layers.index(pure.collapsed[0]) + 1 if pure.collapsed else math.nan
    last = networks.kinds["skip, MLP, norm"].log_relative_residual.value[-1].exp()
    keys = (
        ("layers until rounding", first, f"of pure attention: |res| / |X| below {pure.floor:.1g}"),
        ("exponent of the bound", float((3**spec.depth - 1) // 2), "of its constant, after the last layer"),
        ("paths by the skips", float(sum(theory.attention_paths(spec.depth, spec.heads))), "(1 + H)^L"),
        ("residual with skips", float(last), "after the last layer, with MLP and norm behind"),
        ("cosine at any depth", limit, "of skips times 1/√L, uniform attention alone"),
    )
    facts = (
        f"{spec.tokens} tokens of width {spec.width}", f"{spec.heads} heads", f"{seeds} networks of {spec.depth} layers"
    )  # fmt: skip
    charts = (_by_architecture(networks), _bound_chart(bound), *_skip_charts(lines))
    return TheoryPage("Attention and the rank of tokens", facts, keys, "layer", [bound, *lines], charts)


def _lines(spec: AttentionSpec, networks: Measured) -> tuple[Line, list[Line]]:
    """The bound beside pure attention, and residuals with skips beside their recursion."""
    from pullback import theory
    from pullback.report.theory.charts import Line

    norm = networks.constant / 4
    known = theory.rank_collapse_bound(networks.start, spec.depth, weight_norm=norm)  # H and d_k are in the constant
    bounded = networks.bounded
    kept = [k for k in range(spec.depth) if bounded.relative_residual.value[k] > 4 * bounded.floor]  # else rounding
    value, stderr = ([float(part[k]) for k in kept] for part in (bounded.residual.value, bounded.residual.stderr))
    found_at = [0, *(k + 1 for k in kept)]
    at = [k for k in range(spec.depth + 1) if k in found_at or known.residual[k] > LEAST]
    bound = Line(
        "residual and its bound", at, known.residual[at].tolist(), found_at, [networks.start, *value], [0.0, *stderr]
    )
    lines = []
    for name, each in networks.skips.items():
        profile = theory.token_profile(spec.tokens, spec.depth, mlp=0.0, scaled=name != "skip")
        share = each.relative_frobenius_residual
        rest = [math.sqrt(value) for value in profile.residual[1:]]
        lines.append(Line.by_layer(f"residual, {name}", rest, share.value.tolist(), share.stderr.tolist()))
    return bound, lines


def _by_architecture(networks: Measured) -> Chart:
    """Relative residuals of all kinds."""
    from pullback.charts.plots import Curve, curves

    drawn = []
    for name, each in networks.kinds.items():
        assert each.start is not None
        values = [
            *each.start.log_relative_residual.value.exp().tolist(),
            *each.log_relative_residual.value.exp().tolist(),
        ]
        errors = [*each.start.log_relative_residual.stderr.tolist(), *each.log_relative_residual.stderr.tolist()]
        # down to where a standard error of the logarithm ends
        shown = [-value * math.expm1(-error) for value, error in zip(values, errors, strict=True)]
        drawn.append(Curve(name, range(len(values)), values, "line", stderr=shown))
    reading = (
        "What sets tokens apart, over all there is: pure attention cubes it in every layer, down to rounding; skips "
        "keep it (Dong et al. 2021)."
    )
    return curves("residual", "Residual by architecture", reading, drawn, x="layer", y="|res(X)| / |X|", log_y=True)


def _bound_chart(line: Line) -> Chart:
    """Pure attention on small tokens, and what it can be at most."""
    from pullback.charts.plots import Curve, curves
    from pullback.charts.text import counted
    from pullback.report.theory.charts import NETWORKS, THEORY

    known = line.known
    below = sum(value <= known[at] for value, at in zip(line.found[1:], line.found_at[1:], strict=True))
    drawn = [
        Curve("bound", line.at, line.theory, "line", THEORY),
        Curve("networks", line.found_at, line.found, "points", NETWORKS, line.stderr),
    ]
    reading = (
        "Tokens small enough for the bound to promise something: c^((3^L - 1) / 2) r^(3^L), for weights of this size."
    )
    summary = f"{below} of {counted(len(line.found) - 1, 'layer')} that rounding does not hide: below the bound."
    return curves("bound", "Pure attention and its bound", reading, drawn, x="layer", y="|res(X)|", log_y=True,
                  summary=(summary,))  # fmt: skip


def _skip_charts(lines: list[Line]) -> tuple[Chart, ...]:
    """Residuals with skips as they are and scaled."""
    from pullback.report.theory.charts import line_chart

    readings = (
        ("skip", "With a skip tokens still become one, by a fixed factor a layer."),
        ("scaled", "With branches times 1/√L they stay apart, however deep the network (Noci et al. 2022)."),
    )
    return tuple(
        line_chart(line, key, f"{reading} Small tokens, in the norm of Frobenius.", x="layer", y="|res(X)| / |X|")
        for line, (key, reading) in zip(lines, readings, strict=True)
    )
