"""Claims about how an estimator draws."""
