"""The pages of ``pullback dynamics``, a file a page: what is computed for it, and its charts."""
