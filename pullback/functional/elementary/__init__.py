"""Torch's one-call operations from elementary ones, whose derivatives of every order are right."""

from pullback.functional.elementary.algebra import ALGEBRA
from pullback.functional.elementary.confident import CONFIDENT
from pullback.functional.elementary.layers import LAYERS, NORMS
from pullback.functional.elementary.losses import LOSSES

__all__ = ["ALGEBRA", "CONFIDENT", "LAYERS", "LOSSES", "NORMS"]
