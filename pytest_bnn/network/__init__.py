"""Looking at any torch module: without disturbing it, call by call, output by output. No Bayesian word here."""
