"""What an influence's sign says, in a sentence for people."""

from __future__ import annotations

from pullback.influence.response import Wrt

OF_ITSELF = (
    "How far each sample changes its own loss, per unit of its weight, in units of that loss: the largest are samples "
    "that the model fits alone, rare ones or wrong labels"
)
_CHANGED: dict[Wrt, str] = {
    "weights": "per unit of the sample's weight (1 is one sample more)",
    "targets": "per unit of change of the sample's target",
    "inputs": "per unit of change of the sample's input",
    "labels": "if the sample had the other label",
    "decay": "per unit of weight decay",
}


def of_queries_in_words(wrt: Wrt, *, losses: bool) -> str:
    """What an influence on queries is, and which sign helps.

    Example:
        >>> of_queries_in_words("weights", losses=False)
        "Change of a query's output, per unit of the sample's weight (1 is one sample more)"
    """
    told = f"Change of a query's {'loss' if losses else 'output'}, {_CHANGED[wrt]}"
    if not losses:
        return told
    helped, harmed = "the query's loss falls: it helps", "rises: it harms"
    return f"{told}. Below 0 {helped}; above 0 it {harmed}"
