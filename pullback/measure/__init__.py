"""What ``theory`` predicts, measured on real networks: of any architecture, with standard errors."""

from pullback.measure.profile import Profile
from pullback.measure.propagation import SignalPropagation, signal_propagation
from pullback.measure.specs import NetworkSpec

__all__ = [
    "NetworkSpec",
    "Profile",
    "SignalPropagation",
    "signal_propagation",
]
