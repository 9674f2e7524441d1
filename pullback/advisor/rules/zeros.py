"""Layers whose weights are all zero and stay so: their units are one unit, and none gets a gradient."""

from __future__ import annotations

from collections.abc import Iterator

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.model import RECURRENT, RELU_FAMILY, kinds
from pullback.advisor.reading import layers, once_a_run, span, with_layers
from pullback.advisor.rules.words import listed
from pullback.advisor.severity import severity
from pullback.runs import Run


@once_a_run
def zero_layers(run: Run) -> list[str]:
    """Layers that have a gradient of 0 in every measurement, and never weights that a step could be compared with.

    A layer that starts at zero behind others that do not, as the last one of a branch may, has a gradient.
    """
    names, norms = layers(with_layers(run, "flow", "gradient_norm"), "gradient_norm")
    moving, ratios = layers(with_layers(run, "updates", "ratio"), "ratio")
    if len(norms) < 2 or len(ratios) < 2:
        return []
    still = (norms == 0.0).all(0)
    return [name for name, none in zip(names, still.tolist(), strict=True) if none and name not in moving]


def zero_weights(run: Run) -> Iterator[Finding]:
    """Starting weights that are all zero, which no rate undoes."""
    zero = zero_layers(run)
    if not zero:
        return
    change = Change(
        "initialisation", "he" if kinds(run) & set(RELU_FAMILY) and not kinds(run) & set(RECURRENT) else "xavier"
    )
    records = with_layers(run, "flow", "gradient_norm")
    yield Finding(
        "ordered-initialisation",
        severity(run),
        zero[0],
        (0, span(records)[1]),
        {"layers of zero weights": float(len(zero))},
        "a gradient of exactly 0, of layers without a weight that is not 0, in all measurements",
        "definition: of zero weights behind zero weights the gradient is 0",
        f"Start the weights at random: {str(change.value).capitalize()} initialisation",
        summary=f"The weights of {listed(zero)} are all zero and stay so: every unit does the same, and none gets a "
        "gradient.",
        change=change,
    )
