"""Matrices known by their products: curvature of the mean loss, and Jacobians between layers."""

from pullback.operators.base import Operator
from pullback.operators.gauss_newton import GaussNewton
from pullback.operators.hessian import Hessian
from pullback.operators.layer_jacobians import layer_jacobians

__all__ = ["GaussNewton", "Hessian", "Operator", "layer_jacobians"]
