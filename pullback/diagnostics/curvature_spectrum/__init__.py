"""``curvature_spectrum``: eigenvalues of curvature matrices by the cheaper of two routes."""
