"""What our company asks of Bayesian networks."""
