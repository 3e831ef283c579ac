"""Hypothesis strategies for whole networks, their conversions and what happens to these afterwards."""

from pytest_bnn.strategies._layers import KINDS, layers
from pytest_bnn.strategies._machine import ConversionMachine
from pytest_bnn.strategies._networks import FEATURES, PLAIN_FEATURES, architectures, inputs_for
from pytest_bnn.strategies._source import source

__all__ = [
    "FEATURES",
    "KINDS",
    "PLAIN_FEATURES",
    "ConversionMachine",
    "architectures",
    "inputs_for",
    "layers",
    "source",
]
