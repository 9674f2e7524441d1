"""Exact inner products of gradients, from layer inputs and output gradients."""

from pullback.kernels.backward import KernelSeries, backward_kernel
from pullback.kernels.check_gradients import GradientCheck, ParameterCheck, check_gradients
from pullback.kernels.gradients import GradientMatrix
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan import KernelPlan, LayerPlan
from pullback.kernels.preview import plan_kernel
from pullback.kernels.rates import Rates
from pullback.kernels.sketch import SketchedKernel, sketch_kernel
from pullback.kernels.sketch_project import Sketch
from pullback.kernels.store import KernelStore, kernel_to_store, open_store
from pullback.kernels.tangent import tangent_kernel
from pullback.kernels.user_rules import register_rule

__all__ = [
    "GradientCheck",
    "GradientMatrix",
    "Kernel",
    "KernelPlan",
    "KernelSeries",
    "KernelStore",
    "LayerPlan",
    "ParameterCheck",
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
]
