"""Exact inner products of per-sample gradients, from layer inputs and output gradients."""

from pullback.kernels.gradients import GradientMatrix
from pullback.kernels.kernel import Kernel, KernelSeries, backward_kernel
from pullback.kernels.plan import KernelPlan, LayerPlan, plan_kernel

__all__ = ["GradientMatrix", "Kernel", "KernelPlan", "KernelSeries", "LayerPlan", "backward_kernel", "plan_kernel"]
