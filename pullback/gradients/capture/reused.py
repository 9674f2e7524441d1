"""Parameters that are used several times: their rows in one factor."""

from __future__ import annotations

from pullback.gradients.rows.factor import Factor
from pullback.gradients.rows.tied import one_of

Built = list[tuple[str, Factor]]  # name of the rule, factor


def each_parameter_once(built: Built, ruled: set[str]) -> tuple[list[Factor], list[str]]:
    """Factors of reused parameters are joined, so that the terms between two uses are in the kernel."""
    uses = [name for _, factor in built for name in factor.shapes]
    single_use = {name for name in uses if uses.count(name) == 1} & ruled
    factors: list[Factor] = []
    rules: list[str] = []
    shared: dict[str, Built] = {}
    for rule, factor in built:
        if set(factor.shapes) <= single_use:
            factors.append(factor)
            rules.append(rule)
            continue
        for name in (n for n in factor.shapes if n in ruled):
            shared.setdefault(name, []).append((rule, factor.only(name)))
            if len(shared[name]) == uses.count(name):
                factors.append(one_of([part for _, part in shared[name]]))
                rules.append(" + ".join(dict.fromkeys(rule for rule, _ in shared[name])))
    return factors, rules
