"""What ``theory`` predicts, measured on real networks: of any architecture, with standard errors."""

from pullback.measure.boundary import BoundaryCurvature, boundary_curvature
from pullback.measure.chains import Lyapunov, MatrixPowers, lyapunov_exponents, matrix_powers, recurrent_jacobians
from pullback.measure.crossings import BoundaryPoints, boundary_points
from pullback.measure.curves import CurveProfiles, curve_metrics
from pullback.measure.effective import EffectiveVariances, effective_variances
from pullback.measure.factors import GradientFactors, gradient_factors
from pullback.measure.jacobians import JacobianSpectrum, jacobian_extremes, jacobian_spectrum
from pullback.measure.linearity import linearity, linearity_table
from pullback.measure.linearity_result import Linearity
from pullback.measure.profile import Profile
from pullback.measure.propagation import SignalPropagation, signal_propagation
from pullback.measure.rank_collapse import (
    AttentionHeads,
    AttentionSpec,
    RankCollapse,
    Tokens,
    attention_weight_norm,
    rank_collapse,
)
from pullback.measure.shift import CovariateShift, internal_covariate_shift
from pullback.measure.slopes import Slope
from pullback.measure.smoothness import Smoothness, smoothness
from pullback.measure.specs import NetworkSpec
from pullback.measure.tensor_norms import NormBounds, norm_221

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
