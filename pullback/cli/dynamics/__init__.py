"""``pullback dynamics``: the commands, and a file a page."""
