"""What checks know of Bayesian layers, under one name: see `registry`, `gaussian` and `silence`."""

from pytest_bnn.libraries.bayesian_torch import ESTIMATORS
from pytest_bnn.libraries.gaussian import PosteriorTensor
from pytest_bnn.libraries.protocol import BayesianLayer
from pytest_bnn.libraries.registry import (
    KlError,
    bayesian_layers,
    counted_twice,
    is_bayesian,
    kl,
    lacking,
    orphaned_posteriors,
    unknown_layers,
)
from pytest_bnn.libraries.silence import shifted_prior, watched_noise, zero_noise, zero_sigma

__all__ = [
    "ESTIMATORS",
    "BayesianLayer",
    "KlError",
    "PosteriorTensor",
    "bayesian_layers",
    "counted_twice",
    "is_bayesian",
    "kl",
    "lacking",
    "orphaned_posteriors",
    "shifted_prior",
    "unknown_layers",
    "watched_noise",
    "zero_noise",
    "zero_sigma",
]
