"""The Monte-Carlo engine: the passes of a Bayesian network, at the speed that the hardware allows.

It computes what the layers' own forward computes, with noise of its own. `handshake` decides whether it may stand in.
"""
