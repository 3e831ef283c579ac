"""Hypothesis strategies for whole networks, their conversions and what happens to these afterwards."""

from pytest_bnn.strategies._conversions import (
    CONVERTIBLE_FEATURES,
    CONVERTIBLE_KINDS,
    ConversionExample,
    conversions,
)
from pytest_bnn.strategies._layers import KINDS, layers
from pytest_bnn.strategies._machine import ConversionMachine
from pytest_bnn.strategies._networks import FEATURES, PLAIN_FEATURES, architectures, inputs_for
from pytest_bnn.strategies._priors import prior_parameters
from pytest_bnn.strategies._source import source
from pytest_bnn.strategies._teachers import RESIDUAL_BLOCKS, teachers

__all__ = [
    "CONVERTIBLE_FEATURES",
    "CONVERTIBLE_KINDS",
    "FEATURES",
    "KINDS",
    "PLAIN_FEATURES",
    "RESIDUAL_BLOCKS",
    "ConversionExample",
    "ConversionMachine",
    "architectures",
    "conversions",
    "inputs_for",
    "layers",
    "prior_parameters",
    "source",
    "teachers",
]
