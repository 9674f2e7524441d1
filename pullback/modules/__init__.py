"""Networks as ordinary modules, and the starting weights they are studied with."""

from pullback.modules.activations import ACTIVATIONS, activation_module
from pullback.modules.branches import DrawnLayer, Initialisation
from pullback.modules.critical import initialise
from pullback.modules.initialise import SCHEMES, initialise_weights
from pullback.modules.linformer import LinformerAttention
from pullback.modules.mlp import MLP
from pullback.modules.wide_network import WideNetwork

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "SCHEMES",
    "DrawnLayer",
    "Initialisation",
    "LinformerAttention",
    "WideNetwork",
    "activation_module",
    "initialise",
    "initialise_weights",
]
