"""Models linear in their parameters: trained outputs, their distribution, and regression, from kernels alone."""
