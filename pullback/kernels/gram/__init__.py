"""Runs a plan: products of gradient rows, tile by tile, into the blocks of a kernel."""
