"""Training steered by what is measured."""

from pullback.controllers.conflict_sampler import ConflictSampler
from pullback.controllers.curvature_lr import CurvatureLR
from pullback.controllers.noise_scale_batch import NoiseScaleBatch

__all__ = ["ConflictSampler", "CurvatureLR", "NoiseScaleBatch"]
