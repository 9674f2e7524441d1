"""Estimates of kernels from sketched gradient rows, with standard errors."""
