"""A model and a loss as functions of named parameters; the data they are evaluated on."""

from pullback.functional.batch import check_batch, num_samples, take
from pullback.functional.datasets import Dataset, load_cifar10, load_digits, load_npz
from pullback.functional.likelihood import sample_targets
from pullback.functional.loss_curvature import output_hessian
from pullback.functional.losses import LossFunction, per_sample_loss
from pullback.functional.model_view import ModelView
from pullback.functional.readout import Readout, loss_readout, output_readout, token_readout
from pullback.functional.undisturbed import undisturbed

__all__ = [
    "Dataset",
    "LossFunction",
    "ModelView",
    "Readout",
    "check_batch",
    "load_cifar10",
    "load_digits",
    "load_npz",
    "loss_readout",
    "num_samples",
    "output_hessian",
    "output_readout",
    "per_sample_loss",
    "sample_targets",
    "take",
    "token_readout",
    "undisturbed",
]
