"""From one forward and one backward pass to the gradient rows of every sample, or a refusal."""
