"""The geometry of neural-network training, exact and cheap enough to leave on.

Public names are loaded when they are first used, so that ``import pullback`` itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pullback._hooks import judges as _judges
from pullback._version import __version__

if TYPE_CHECKING:
    from pullback import functional, measure, modules, monitor, reference, theory
    from pullback._checks import InputError, PullbackError, SelfCheckError, UnsupportedError
    from pullback._results import Estimate, Solution
    from pullback.advisor import Change, Finding, diagnose
    from pullback.controllers import ConflictSampler, CurvatureLR, NoiseScaleBatch
    from pullback.diagnostics import (
        CurvatureSpectrum,
        alignment,
        compare_curvatures,
        curvature_spectrum,
        gradient_noise,
        kernel_drift,
        layer_flow,
        layer_spectra,
        moments,
        sharpness,
        spectrum,
        trade_off,
    )
    from pullback.functional import ModelView, frozen_batch_norm, linearize
    from pullback.influence import (
        CostResponse,
        DampedInverse,
        Influence,
        InfluencePlan,
        LeaveOneOut,
        MixedDerivative,
        Response,
        cost_response,
        gradient_influence,
        leave_one_out,
        mixed_second_vp,
        plan_influence,
        query_influence,
        response,
        self_influence,
    )
    from pullback.kernels import (
        GradientCheck,
        GradientMatrix,
        Kernel,
        KernelPlan,
        KernelStore,
        Rates,
        Sketch,
        SketchedKernel,
        backward_kernel,
        check_gradients,
        kernel_to_store,
        open_store,
        plan_kernel,
        register_rule,
        sketch_kernel,
        tangent_kernel,
    )
    from pullback.modules import initialise
    from pullback.monitor import Monitor
    from pullback.operators import (
        Fisher,
        GaussNewton,
        Hessian,
        Jacobian,
        damp,
        gauss_newton_vp,
        hvp,
        jvp,
        layer_jacobians,
        pullback_metric,
        taylor,
        vjp,
    )
    from pullback.report import write_figures, write_report
    from pullback.runs import Run, load_run
    from pullback.spectral import (
        ConvexityCheck,
        Density,
        Eigenpairs,
        MorseIndex,
        StationaryPoint,
        classify_stationary_point,
        diagonal,
        eigenvalues,
        frobenius_norm,
        is_convex_between,
        is_positive_definite,
        loewner_order,
        morse_index,
        neumann_solve,
        rayleigh_quotient,
        solve,
        spectral_density,
        spectral_norm,
        trace,
    )

_HOME = {
    "pullback._checks": ("InputError", "PullbackError", "SelfCheckError", "UnsupportedError"),
    "pullback._results": ("Estimate", "Solution"),
    "pullback.advisor": ("Change", "Finding", "diagnose"),
    "pullback.controllers": ("ConflictSampler", "CurvatureLR", "NoiseScaleBatch"),
    "pullback.diagnostics": (
        "CurvatureSpectrum",
        "alignment",
        "compare_curvatures",
        "curvature_spectrum",
        "gradient_noise",
        "kernel_drift",
        "layer_flow",
        "layer_spectra",
        "moments",
        "sharpness",
        "spectrum",
        "trade_off",
    ),
    "pullback.functional": ("ModelView", "frozen_batch_norm", "linearize"),
    "pullback.influence": (
        "CostResponse",
        "DampedInverse",
        "Influence",
        "InfluencePlan",
        "LeaveOneOut",
        "MixedDerivative",
        "Response",
        "cost_response",
        "gradient_influence",
        "leave_one_out",
        "mixed_second_vp",
        "plan_influence",
        "query_influence",
        "response",
        "self_influence",
    ),
    "pullback.kernels": (
        "GradientCheck",
        "GradientMatrix",
        "Kernel",
        "KernelPlan",
        "KernelStore",
        "Rates",
        "Sketch",
        "SketchedKernel",
        "backward_kernel",
        "check_gradients",
        "kernel_to_store",
        "open_store",
        "plan_kernel",
        "register_rule",
        "sketch_kernel",
        "tangent_kernel",
    ),
    "pullback.modules": ("initialise",),
    "pullback.monitor": ("Monitor",),
    "pullback.operators": (
        "Fisher",
        "GaussNewton",
        "Hessian",
        "Jacobian",
        "damp",
        "gauss_newton_vp",
        "hvp",
        "jvp",
        "layer_jacobians",
        "pullback_metric",
        "taylor",
        "vjp",
    ),
    "pullback.report": ("write_figures", "write_report"),
    "pullback.runs": ("Run", "load_run"),
    "pullback.spectral": (
        "ConvexityCheck",
        "Density",
        "Eigenpairs",
        "MorseIndex",
        "StationaryPoint",
        "classify_stationary_point",
        "diagonal",
        "eigenvalues",
        "frobenius_norm",
        "is_convex_between",
        "is_positive_definite",
        "loewner_order",
        "morse_index",
        "neumann_solve",
        "rayleigh_quotient",
        "solve",
        "spectral_density",
        "spectral_norm",
        "trace",
    ),
}
_PACKAGES = ("functional", "measure", "modules", "monitor", "reference", "theory")
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Change",
    "ConflictSampler",
    "ConvexityCheck",
    "CostResponse",
    "CurvatureLR",
    "CurvatureSpectrum",
    "DampedInverse",
    "Density",
    "Eigenpairs",
    "Estimate",
    "Finding",
    "Fisher",
    "GaussNewton",
    "GradientCheck",
    "GradientMatrix",
    "Hessian",
    "Influence",
    "InfluencePlan",
    "InputError",
    "Jacobian",
    "Kernel",
    "KernelPlan",
    "KernelStore",
    "LeaveOneOut",
    "MixedDerivative",
    "ModelView",
    "Monitor",
    "MorseIndex",
    "NoiseScaleBatch",
    "PullbackError",
    "Rates",
    "Response",
    "Run",
    "SelfCheckError",
    "Sketch",
    "SketchedKernel",
    "Solution",
    "StationaryPoint",
    "UnsupportedError",
    "__version__",
    "alignment",
    "backward_kernel",
    "check_gradients",
    "classify_stationary_point",
    "compare_curvatures",
    "cost_response",
    "curvature_spectrum",
    "damp",
    "diagnose",
    "diagonal",
    "eigenvalues",
    "frobenius_norm",
    "frozen_batch_norm",
    "functional",
    "gauss_newton_vp",
    "gradient_influence",
    "gradient_noise",
    "hvp",
    "initialise",
    "is_convex_between",
    "is_positive_definite",
    "jvp",
    "kernel_drift",
    "kernel_to_store",
    "layer_flow",
    "layer_jacobians",
    "layer_spectra",
    "leave_one_out",
    "linearize",
    "load_run",
    "loewner_order",
    "measure",
    "mixed_second_vp",
    "modules",
    "moments",
    "monitor",
    "morse_index",
    "neumann_solve",
    "open_store",
    "plan_influence",
    "plan_kernel",
    "pullback_metric",
    "query_influence",
    "rayleigh_quotient",
    "reference",
    "register_rule",
    "response",
    "self_influence",
    "sharpness",
    "sketch_kernel",
    "solve",
    "spectral_density",
    "spectral_norm",
    "spectrum",
    "tangent_kernel",
    "taylor",
    "theory",
    "trace",
    "trade_off",
    "vjp",
    "write_figures",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"pullback.{name}")
    if name not in _WHERE:
        message = f"module 'pullback' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


_judges[:] = [lambda run: __getattr__("diagnose")(run)]  # loaded when a run's findings are first asked for


def __dir__() -> list[str]:
    return sorted(__all__)
