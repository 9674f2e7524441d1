"""What ``theory`` predicts, measured on real networks: of any architecture, with standard errors."""

from pullback.measure.curves import CurveProfiles, curve_metrics
from pullback.measure.effective import EffectiveVariances, effective_variances
from pullback.measure.profile import Profile
from pullback.measure.propagation import SignalPropagation, signal_propagation
from pullback.measure.specs import NetworkSpec

__all__ = [
    "CurveProfiles",
    "EffectiveVariances",
    "NetworkSpec",
    "Profile",
    "SignalPropagation",
    "curve_metrics",
    "effective_variances",
    "signal_propagation",
]
