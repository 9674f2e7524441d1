"""Exact inner products of gradients, from layer inputs and output gradients."""

from pullback.gradients.check import GradientCheck, ParameterCheck, check_gradients
from pullback.gradients.matrix import GradientMatrix
from pullback.gradients.rules.user import register_rule
from pullback.kernels.backward import backward_kernel
from pullback.kernels.kernel import Kernel
from pullback.kernels.kernel_series import KernelSeries
from pullback.kernels.plan.kernel_plan import KernelPlan, LayerPlan
from pullback.kernels.plan.rates import Rates
from pullback.kernels.plan_kernel import plan_kernel
from pullback.kernels.plan_store import plan_store
from pullback.kernels.sketch.project import Sketch
from pullback.kernels.sketch.sketched import SketchedKernel, sketch_kernel
from pullback.kernels.store.kernel_to_store import KernelStore, kernel_to_store, open_store
from pullback.kernels.store.plan import StorePlan
from pullback.kernels.tangent import tangent_kernel

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
    "StorePlan",
    "backward_kernel",
    "check_gradients",
    "kernel_to_store",
    "open_store",
    "plan_kernel",
    "plan_store",
    "register_rule",
    "sketch_kernel",
    "tangent_kernel",
]
