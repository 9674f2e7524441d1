"""What steered training reaches, beside training with constants found in hindsight."""
