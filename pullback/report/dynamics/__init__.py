"""Charts of ``pullback dynamics``: trajectories, and theory beside simulation."""
