"""Networks as ordinary modules, and the starting weights they are studied with."""

from pullback.modules.activations import ACTIVATIONS, activation_module
from pullback.modules.critical import initialise
from pullback.modules.initialise import SCHEMES, initialise_weights
from pullback.modules.mlp import MLP

__all__ = ["ACTIVATIONS", "MLP", "SCHEMES", "activation_module", "initialise", "initialise_weights"]
