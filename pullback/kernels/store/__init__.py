"""Kernels larger than memory: tiles on disk, resumable, checked."""
