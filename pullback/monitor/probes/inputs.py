"""Are the inputs on one scale, and around zero?"""

from __future__ import annotations

import torch

from pullback.functional.batch import tensors
from pullback.monitor.probes.base import Measurement, Observation, Probe


def measure(seen: Observation) -> Measurement:
    """Over the features of all inputs that are real numbers, standard deviations over the loop's batch.

    ``largest_mean_over_std``: largest |mean| / std of a feature; ``std_ratio``: largest over smallest std, both over
    features that vary; ``constant_features`` do not; ``largest_abs`` of all numbers. Nothing for tokens.
    """
    parts = [leaf.detach().flatten(1) for leaf in tensors(seen.batch[0]) if leaf.is_floating_point() and leaf.dim() > 1]
    if not parts:
        return Measurement({})
    blocks = (block.double() for part in parts for block in part.split(512, 1))  # copies of a few columns at a time
    std, mean, largest = (
        torch.cat(found)
        for found in zip(*((b.std(0, correction=0), b.mean(0).abs(), b.abs().amax(0)) for b in blocks), strict=True)
    )
    varies = std > 1e-7 * largest
    values = {
        "largest_abs": float(largest.max()),
        "num_features": len(std),
        "constant_features": int((~varies).sum()),
    }
    if bool(varies.any()):
        std, mean = std[varies], mean[varies]
        values |= {"largest_mean_over_std": float((mean / std).max()), "std_ratio": float(std.max() / std.min())}
    return Measurement(values)


PROBE = Probe("inputs", measure, sparse=True)
