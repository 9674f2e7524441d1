"""One file per case: what is built, the methods that are timed on it, and the targets they are held to.

A case module has

- ``TITLE``: one line for the tables.
- ``build(scale)``: the problem, the same in every process; ``scale`` shrinks the number of samples.
- ``METHODS``: name -> function of the problem that imports and prepares what it needs and returns the call to
  be measured. ``family[variant]`` names variants of one method, of which the fastest is reported.
- ``targets(rows)``: verdicts, from the measured row of every family.
- ``REPEATS`` (optional): the least number of rounds, for quick and noisy calls; ``ROUNDS`` (optional): their number.
- ``PACKAGES`` (optional): those besides the usual ones whose releases are named under the table.
- ``verify(problem, spectrum)`` (where eigenvectors are returned): ``residual``, ``reached`` and ``num_products``.
- ``ONCE`` (optional): methods so slow that their first call is timed, in the first round, and no other.

A call returns ``Blocks``, which all methods must agree on (or on the total alone), ``Columns`` or ``Spectrum``, to be
agreed on likewise, ``Elsewhere`` where other processes did and timed the work (all of ``methods/problem.py``), or None
where there is nothing to compare.
A method that cannot run here raises ``Skip``.
"""
