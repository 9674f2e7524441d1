"""Moments and top eigenvalues of the backward kernel, normalised by the number of samples."""

from __future__ import annotations

import torch

from pullback.diagnostics import moments
from pullback.monitor.probes.base import Measurement, Observation, Probe

NUM_EIGENVALUES = 16


def measure(observed: Observation) -> Measurement:
    """``M1``, ``M2``, ``conditioning``, ``effective_rank`` and the largest ``eigenvalues`` of K / N, descending."""
    kernel = observed.kernel
    spectral = moments(kernel)
    n = len(kernel.total)
    # in float64: of nearly singular kernels the solver gives up in float32
    eigenvalues = torch.linalg.eigvalsh(kernel.total.double()).flip(0)[:NUM_EIGENVALUES] / n
    return Measurement(
        {
            "M1": spectral.M1,
            "M2": spectral.M2,
            "conditioning": spectral.conditioning,
            "effective_rank": spectral.effective_rank,
            "eigenvalues": eigenvalues.tolist(),
            "num_samples": n,
            "num_params": kernel.num_params,
            "normalisation": spectral.normalisation,
        }
    )


PROBE = Probe("kernel", measure, pairs=True)
