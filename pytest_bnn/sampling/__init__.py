"""Monte-Carlo passes: drawn once, shared by checks, reduced to predictions."""
