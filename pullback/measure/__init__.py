"""What ``theory`` predicts, measured on real networks: of any architecture, with standard errors."""

from pullback.measure.boundary_curvature import BoundaryCurvature, boundary_curvature
from pullback.measure.boundary_points import BoundaryPoints, boundary_points
from pullback.measure.covariate_shift import CovariateShift, internal_covariate_shift
from pullback.measure.curve_metrics import CurveProfiles, curve_metrics
from pullback.measure.effective_variances import EffectiveVariances, effective_variances
from pullback.measure.gradient_factors import GradientFactors, gradient_factors
from pullback.measure.jacobian_spectrum import JacobianSpectrum, jacobian_extremes, jacobian_spectrum
from pullback.measure.linearity.family import linearity, linearity_table
from pullback.measure.linearity.result import Linearity
from pullback.measure.linearity.slopes import Slope
from pullback.measure.linearity.tensor_norms import NormBounds, norm_221
from pullback.measure.networks.profile import Profile
from pullback.measure.networks.spec import NetworkSpec
from pullback.measure.rank_collapse import (
    AttentionHeads,
    AttentionSpec,
    RankCollapse,
    Tokens,
    attention_weight_norm,
    rank_collapse,
)
from pullback.measure.recurrence import Lyapunov, MatrixPowers, lyapunov_exponents, matrix_powers, recurrent_jacobians
from pullback.measure.signal_propagation import SignalPropagation, signal_propagation
from pullback.measure.smoothness import Smoothness, smoothness

__all__ = [
    "AttentionHeads",
    "AttentionSpec",
    "BoundaryCurvature",
    "BoundaryPoints",
    "CovariateShift",
    "CurveProfiles",
    "EffectiveVariances",
    "GradientFactors",
    "JacobianSpectrum",
    "Linearity",
    "Lyapunov",
    "MatrixPowers",
    "NetworkSpec",
    "NormBounds",
    "Profile",
    "RankCollapse",
    "SignalPropagation",
    "Slope",
    "Smoothness",
    "Tokens",
    "attention_weight_norm",
    "boundary_curvature",
    "boundary_points",
    "curve_metrics",
    "effective_variances",
    "gradient_factors",
    "internal_covariate_shift",
    "jacobian_extremes",
    "jacobian_spectrum",
    "linearity",
    "linearity_table",
    "lyapunov_exponents",
    "matrix_powers",
    "norm_221",
    "rank_collapse",
    "recurrent_jacobians",
    "signal_propagation",
    "smoothness",
]
