#!/usr/bin/env bash
# Makes .bench/ at the repository root: the project, and the peers it is measured against, in an environment
# of their own. The peers never enter the project's own environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"${PYTHON:-python3}" -m venv .bench
pip=(.bench/bin/python -m pip install --quiet --constraint constraints.txt)

"${pip[@]}" torch
"${pip[@]}" numpy scipy zarr plotly rich typer scikit-learn
"${pip[@]}" --no-deps --editable .

# The peers without what they declare, then the packages they do import. BackPACK declares torchvision, but uses
# it only in a helper that loads MNIST.
"${pip[@]}" --no-deps backpack-for-pytorch==1.7.1 opacus==1.6.0
"${pip[@]}" --no-deps unfoldNd==0.2.3 einops==0.8.2 opt_einsum==3.4.0

.bench/bin/python -W ignore - <<'PY'
from importlib.metadata import version

from backpack.extensions import BatchGrad
from opacus.grad_sample import GradSampleModule

import pullback

print("ready:", ", ".join(f"{name} {version(name)}" for name in ("torch", "backpack-for-pytorch", "opacus")))
PY
