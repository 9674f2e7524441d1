"""The page of ``pullback theory``: lines of theory, points of what was measured."""
