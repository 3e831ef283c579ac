"""The native sampler: the passes of a Bayesian network in torch's own operations, on any device.

It draws what the engine draws, by torch instead of compiled loops. `handshake` decides whether it may stand in for the
model's own forward.
"""
