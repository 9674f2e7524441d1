"""The geometry of neural-network training, exact and cheap enough to leave on.

Public names are loaded when they are first used, so that ``import pullback`` itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pullback._version import __version__

if TYPE_CHECKING:
    from pullback import functional, modules, monitor, reference
    from pullback._checks import InputError, PullbackError, SelfCheckError, UnsupportedError
    from pullback._results import Estimate, Solution
    from pullback.advisor import Finding, diagnose
    from pullback.diagnostics import (
        alignment,
        compare_curvatures,
        layer_flow,
        layer_spectra,
        moments,
        sharpness,
        spectrum,
        trade_off,
    )
    from pullback.functional import ModelView, frozen_batch_norm
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
    from pullback.monitor import Monitor
    from pullback.operators import Fisher, GaussNewton, Hessian, damp, layer_jacobians
    from pullback.report import write_figures, write_report
    from pullback.runs import Run, load_run
    from pullback.spectral import (
        Density,
        Eigenpairs,
        diagonal,
        eigenvalues,
        frobenius_norm,
        solve,
        spectral_density,
        spectral_norm,
        trace,
    )

_HOME = {
    "pullback._checks": ("InputError", "PullbackError", "SelfCheckError", "UnsupportedError"),
    "pullback._results": ("Estimate", "Solution"),
    "pullback.advisor": ("Finding", "diagnose"),
    "pullback.diagnostics": (
        "alignment",
        "compare_curvatures",
        "layer_flow",
        "layer_spectra",
        "moments",
        "sharpness",
        "spectrum",
        "trade_off",
    ),
    "pullback.functional": ("ModelView", "frozen_batch_norm"),
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
    "pullback.monitor": ("Monitor",),
    "pullback.operators": ("Fisher", "GaussNewton", "Hessian", "damp", "layer_jacobians"),
    "pullback.report": ("write_figures", "write_report"),
    "pullback.runs": ("Run", "load_run"),
    "pullback.spectral": (
        "Density",
        "Eigenpairs",
        "diagonal",
        "eigenvalues",
        "frobenius_norm",
        "solve",
        "spectral_density",
        "spectral_norm",
        "trace",
    ),
}
_PACKAGES = ("functional", "modules", "monitor", "reference")
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "Finding",
    "Fisher",
    "GaussNewton",
    "GradientCheck",
    "GradientMatrix",
    "Hessian",
    "InputError",
    "Kernel",
    "KernelPlan",
    "KernelStore",
    "ModelView",
    "Monitor",
    "PullbackError",
    "Rates",
    "Run",
    "SelfCheckError",
    "Sketch",
    "SketchedKernel",
    "Solution",
    "UnsupportedError",
    "__version__",
    "alignment",
    "backward_kernel",
    "check_gradients",
    "compare_curvatures",
    "damp",
    "diagnose",
    "diagonal",
    "eigenvalues",
    "frobenius_norm",
    "frozen_batch_norm",
    "functional",
    "kernel_to_store",
    "layer_flow",
    "layer_jacobians",
    "layer_spectra",
    "load_run",
    "modules",
    "moments",
    "monitor",
    "open_store",
    "plan_kernel",
    "reference",
    "register_rule",
    "sharpness",
    "sketch_kernel",
    "solve",
    "spectral_density",
    "spectral_norm",
    "spectrum",
    "tangent_kernel",
    "trace",
    "trade_off",
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


def __dir__() -> list[str]:
    return sorted(__all__)
