"""Matrices known by their products: curvature of the mean loss, Jacobians, and the algebra of operators."""

from pullback.operators.adapt import as_operator
from pullback.operators.base import Operator
from pullback.operators.damp import damp
from pullback.operators.fisher import Fisher
from pullback.operators.gauss_newton import GaussNewton
from pullback.operators.hessian import Hessian
from pullback.operators.jacobian import Jacobian
from pullback.operators.layer_jacobians import layer_jacobians
from pullback.operators.metric import pullback_metric
from pullback.operators.products import gauss_newton_vp, hvp, jvp, vjp
from pullback.operators.taylor_polynomial import taylor

__all__ = [
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Jacobian",
    "Operator",
    "as_operator",
    "damp",
    "gauss_newton_vp",
    "hvp",
    "jvp",
    "layer_jacobians",
    "pullback_metric",
    "taylor",
    "vjp",
]
