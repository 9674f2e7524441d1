"""Numbers from kernels and operators: moments, noise, drift, spectra, alignment, flow over depth, curvature."""

from pullback.diagnostics.alignment import Alignment, alignment, label_alignment
from pullback.diagnostics.curvature_spectrum.result import CurvatureSpectrum
from pullback.diagnostics.curvature_spectrum.spectrum import curvature_spectrum
from pullback.diagnostics.drift import KernelDrift, kernel_drift
from pullback.diagnostics.flow import LayerFlow, layer_flow
from pullback.diagnostics.kernel_spectrum import Spectrum, layer_spectra, spectrum
from pullback.diagnostics.moments import Moments, moments
from pullback.diagnostics.noise import GradientNoise, gradient_noise
from pullback.diagnostics.preconditioned_sharpness import preconditioned_sharpness
from pullback.diagnostics.scale_invariance import ScaleSchedule, equilibrium_norm, scale_invariance, scale_schedule
from pullback.diagnostics.sharpness import Sharpness, compare_curvatures, sharpness
from pullback.diagnostics.step_sizes import stability_limit
from pullback.diagnostics.tangent_path import PathPoint, TangentPath, follow
from pullback.diagnostics.trade_off import TradeOff, trade_off
from pullback.diagnostics.units import UnitActivity, unit_activity

__all__ = [
    "Alignment",
    "CurvatureSpectrum",
    "GradientNoise",
    "KernelDrift",
    "LayerFlow",
    "Moments",
    "PathPoint",
    "ScaleSchedule",
    "Sharpness",
    "Spectrum",
    "TangentPath",
    "TradeOff",
    "UnitActivity",
    "alignment",
    "compare_curvatures",
    "curvature_spectrum",
    "equilibrium_norm",
    "follow",
    "gradient_noise",
    "kernel_drift",
    "label_alignment",
    "layer_flow",
    "layer_spectra",
    "moments",
    "preconditioned_sharpness",
    "scale_invariance",
    "scale_schedule",
    "sharpness",
    "spectrum",
    "stability_limit",
    "trade_off",
    "unit_activity",
]
