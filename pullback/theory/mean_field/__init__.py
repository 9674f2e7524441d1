"""Signals and gradients in wide random networks: fixed points, depth scales, phases."""
