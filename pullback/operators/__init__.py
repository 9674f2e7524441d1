"""Matrices known by their products: curvature of the mean loss, Jacobians, and the algebra of operators."""

from pullback.operators.adapt import as_operator
from pullback.operators.curvature.fisher import Fisher
from pullback.operators.curvature.gauss_newton import GaussNewton
from pullback.operators.curvature.hessian import Hessian
from pullback.operators.damp import damp
from pullback.operators.jacobian import Jacobian
from pullback.operators.layer_jacobians import layer_jacobians
from pullback.operators.metric import pullback_metric
from pullback.operators.operator import Operator
from pullback.operators.products import gauss_newton_vp, hvp, jvp, vjp
from pullback.operators.taylor import taylor

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
