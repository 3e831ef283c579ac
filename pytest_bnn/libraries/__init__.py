"""One adapter a library of Bayesian layers, and what all of them give: posteriors, noise, KL, words."""
