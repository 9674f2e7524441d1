"""Networks as ordinary modules, and the starting weights they are studied with."""

from pullback.modules.activations import ACTIVATIONS, activation_module
from pullback.modules.branches import DrawnLayer, Initialisation
from pullback.modules.frozen_batch_norm import frozen_batch_norm
from pullback.modules.initialise import initialise
from pullback.modules.linearized import linearize, taylor_expand
from pullback.modules.linformer import LinformerAttention
from pullback.modules.mlp import MLP
from pullback.modules.weights import SCHEMES, initialise_weights
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
    "frozen_batch_norm",
    "initialise",
    "initialise_weights",
    "linearize",
    "taylor_expand",
]
