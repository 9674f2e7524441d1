"""``measure.linearity``: Hessians of outputs and what makes them, of one network or over widths."""
