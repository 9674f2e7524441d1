"""The page of a training run, section by section."""
