"""Training steered by what is measured."""

from pullback.controllers.curvature_lr import CurvatureLR

__all__ = ["CurvatureLR"]
