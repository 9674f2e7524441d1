"""Saddles: what methods do near one, the kinds of critical points, and Hessians drawn at random."""

from pullback.dynamics.saddles.fates import Fate, near_saddle, steps_away
from pullback.dynamics.saddles.morse import morse_coordinates
from pullback.dynamics.saddles.points import CriticalPoint, critical_point, critical_points
from pullback.dynamics.saddles.random_hessians import (
    all_positive_probability,
    negative_share,
    random_hessians,
    semicircle,
    spin_glass_spectrum,
)

__all__ = [
    "CriticalPoint",
    "Fate",
    "all_positive_probability",
    "critical_point",
    "critical_points",
    "morse_coordinates",
    "near_saddle",
    "negative_share",
    "random_hessians",
    "semicircle",
    "spin_glass_spectrum",
    "steps_away",
]
