"""Numbers that are none: in the data, and in gradients beside a loss that is one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import number
from pullback.advisor.rules.words import listed, names_in
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run


def non_finite_data(run: Run) -> Iterator[Finding]:
    """NaN or infinity in a batch: no rate and no clipping helps against it."""
    for record in run.of("not_finite"):
        indices = {name: _indices(record.values.get(name)) for name in ("inputs", "targets")}
        bad = sorted({i for each in indices.values() for i in each})
        if not bad:
            continue
        where = " and ".join(name for name, each in indices.items() if each)
        listed = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        yield Finding(
            "non-finite-data",
            "critical",
            None,
            (record.step, record.step),
            {f"samples with bad {name}": float(len(each)) for name, each in indices.items() if each},
            f"NaN or infinity among the {where} of a batch",
            "definition",
            f"Take samples {listed} of the batch of step {record.step} out of the data, or fill in what is missing",
            summary=f"The data holds NaN or infinity ({where} of {len(bad)} samples of step {record.step}), which one "
            "step spreads to all weights.",
            change=Change("check_samples", tuple(bad)),
        )
        return


def non_finite_outputs(run: Run) -> Iterator[Finding]:
    """A loss that is none before any step was made, of data that is: the forward pass overflows, no rate does it."""
    steps, values = run.courses.of("loss")
    if not len(values) or steps[0] > 1 or math.isfinite(values[0]):
        return
    record = next((r for r in run.of("not_finite") if r.step == steps[0]), None)
    if record is None or _from_data(record.values):
        return
    bad = _indices(record.values.get("outputs"))
    asked = isinstance(record.values.get("outputs"), list)
    where = "outputs" if bad else "loss" if asked else "outputs, or the loss of them,"
    yield Finding(
        "non-finite-outputs",
        "critical",
        None,
        (record.step, record.step),
        {"samples whose outputs are not finite": float(len(bad))} if asked else {},
        "a first loss that is NaN or infinite, of inputs and targets that are finite",
        "definition",
        "Look in the forward pass, with the first batch, for numbers that overflow, a logarithm or a root of 0 or "
        "less, a division by 0, or starting weights that are not finite"
        if bad or not asked
        else "Look in the loss, with the first outputs, for a logarithm or a root of 0 or less, or a division by 0",
        summary=f"The {where} are NaN or infinite before any step was made: no learning rate helps against it."
        if where != "loss"
        else "The loss is NaN or infinite before any step was made, of outputs that are finite: no learning rate helps "
        "against it.",
    )


def non_finite_gradients(run: Run) -> Iterator[Finding]:
    """A finite loss whose gradient is none: the root of 0, a norm of 0, a number beyond half precision."""
    for record in run.of("not_finite"):
        names = names_in(record.values.get("gradients"))
        if not names or not math.isfinite(number(record.values.get("loss"))) or _from_data(record.values):
            continue
        losses = training_losses(run.until(record.step))
        yield Finding(
            "non-finite-gradients",
            "critical",
            names[0].rpartition(".")[0] or None,
            (record.step, record.step),
            {
                "loss": number(record.values["loss"]),
                "parameters": float(len(names)),
                "highest loss before, in first ones": losses.peak,
            },
            "a gradient that is NaN or infinite beside a loss that is finite",
            "definition",
            "Look behind the named layer for a square root, a norm, a logarithm or a division at 0 and add a small "
            "constant there; in half precision use a gradient scaler",
            summary=f"The gradient of {listed(names)} is NaN or infinite although the loss is not: one step of it "
            "spoils all weights.",
            change=None,
        )
        return


def _from_data(values: Mapping[str, Any]) -> bool:
    return any(isinstance(values.get(name), list) and values[name] for name in ("inputs", "targets"))


def _indices(value: Any) -> list[int]:
    return [each for each in value if type(each) is int] if isinstance(value, list) else []
