"""Claims about which layers are Bayesian."""
