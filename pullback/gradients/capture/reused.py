"""Parameters that are used several times: their rows in one factor."""

from __future__ import annotations

from dataclasses import replace

import torch

from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import OuterFactor
from pullback.gradients.rows.tied import TiedFactor
from pullback.gradients.rows.tokens import TokenFactor, merged

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
                factors.append(_joined([part for _, part in shared[name]]))
                rules.append(" + ".join(dict.fromkeys(rule for rule, _ in shared[name])))
    return factors, rules


def _joined(factors: list[Factor]) -> Factor:
    """One factor for several uses of a parameter.

    Uses in linear layers are further positions, uses as a table further tokens; both together are a tied table and
    head. Rows of any others are summed.
    """
    if len(factors) == 1:
        return factors[0]
    outers = [f for f in factors if type(f) is OuterFactor]
    tables = [f for f in factors if isinstance(f, TokenFactor)]
    alike = len({(f.dims[1:], f.transposed) for f in outers}) <= 1
    if alike and len(outers) + len(tables) == len(factors):
        if not tables:
            return _more_positions(outers)
        table = merged(tables)
        if not outers:
            return table
        if not outers[0].transposed and outers[0].dims[1] == 1:
            return TiedFactor(table, _more_positions(outers))
    first, *rest = (f.rows(slice(0, f.num_samples)) for f in factors)
    return DenseFactor({name: sum((row[name] for row in rest), start=value) for name, value in first.items()})


def _more_positions(outers: list[OuterFactor]) -> OuterFactor:
    if len(outers) == 1:
        return outers[0]
    inputs = torch.cat([f.inputs for f in outers], 1)
    gradients = torch.cat([f.gradients for f in outers], 2)
    return replace(outers[0], inputs=inputs, gradients=gradients, bias=None, unit=False)
