"""How a benchmark is run: one process a method, what it is measured with, and the tables of its results."""
