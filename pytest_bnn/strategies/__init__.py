"""Hypothesis strategies for whole networks, their conversions and what happens to these afterwards."""

from pytest_bnn.strategies._conversions import CONVERTIBLE_FEATURES, CONVERTIBLE_KINDS, ConversionExample, conversions
from pytest_bnn.strategies._layers import KINDS, layers
from pytest_bnn.strategies._losses import CONVENTIONS, DATA_TERMS, LOSS_KINDS, WEIGHTINGS, ExampleLoss, losses
from pytest_bnn.strategies._machine import ConversionMachine
from pytest_bnn.strategies._networks import FEATURES, PLAIN_FEATURES, architectures, inputs_for
from pytest_bnn.strategies._posteriors import POSTERIOR_KINDS, PosteriorState, posterior_states
from pytest_bnn.strategies._priors import prior_parameters
from pytest_bnn.strategies._source import source
from pytest_bnn.strategies._teachers import RESIDUAL_BLOCKS, teachers

__all__ = [
    "CONVENTIONS",
    "CONVERTIBLE_FEATURES",
    "CONVERTIBLE_KINDS",
    "DATA_TERMS",
    "FEATURES",
    "KINDS",
    "LOSS_KINDS",
    "PLAIN_FEATURES",
    "POSTERIOR_KINDS",
    "RESIDUAL_BLOCKS",
    "WEIGHTINGS",
    "ConversionExample",
    "ConversionMachine",
    "ExampleLoss",
    "PosteriorState",
    "architectures",
    "conversions",
    "inputs_for",
    "layers",
    "losses",
    "posterior_states",
    "prior_parameters",
    "source",
    "teachers",
]
