#!/usr/bin/env bash
# Makes .bench/ at the repository root: the project, and the peers it is measured against, in an environment
# of their own. The peers never enter the project's own environment. .bench-jax/ holds the peer that needs JAX; it
# is the last release that works, on the last release of JAX it works with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

"${PYTHON:-python3}" -m venv .bench
pip=(.bench/bin/python -m pip install --quiet --constraint constraints.txt)

"${pip[@]}" torch
"${pip[@]}" numpy scipy zarr plotly rich typer scikit-learn
"${pip[@]}" --no-deps --editable .

# The peers without what they declare, then the packages they do import. BackPACK declares torchvision, but uses
# it only in a helper that loads MNIST; NNGeometry declares it and does not use it; curvlinops imports einconv,
# linear_operator and tqdm, besides what is there already.
"${pip[@]}" --no-deps backpack-for-pytorch==1.7.1 opacus==1.6.0 nngeometry==0.4
"${pip[@]}" --no-deps curvlinops-for-pytorch==3.0.1 hessian-eigenthings==1.0.0a5 pyhessian==0.1
"${pip[@]}" --no-deps unfoldNd==0.2.3 einops==0.8.2 opt_einsum==3.4.0 \
  einconv==0.1.0 linear_operator==0.6.1 tqdm==4.70.1

.bench/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import hessian_eigenthings
import pyhessian
from backpack.extensions import BatchGrad
from curvlinops import GGNLinearOperator, HessianLinearOperator
from nngeometry import GramMatrix
from opacus.grad_sample import GradSampleModule

import pullback

names = ("torch", "backpack-for-pytorch", "opacus", "nngeometry")
names += ("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")
print("ready:", ", ".join(f"{name} {version(name)}" for name in names))
PY

# neural-tangents imports tf2jax, and that TensorFlow: it is installed with what it declares, and not otherwise used.
"${JAX_PYTHON:-${PYTHON:-python3}}" -m venv .bench-jax
echo '*' > .bench-jax/.gitignore
.bench-jax/bin/python -m pip install --quiet \
  jax==0.4.23 jaxlib==0.4.23 neural-tangents==0.6.5 "numpy<2" "scipy<1.13"

TF_CPP_MIN_LOG_LEVEL=3 .bench-jax/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import neural_tangents

print("ready:", ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "neural-tangents")))
PY
