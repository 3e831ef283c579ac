"""Posteriors and priors for which no finite KL exists."""

from __future__ import annotations

import math

import torch

from pytest_bnn.checks.finding import TENSORS_NOT_FINITE, TENSORS_WITHOUT_KL
from pytest_bnn.libraries.posterior import BayesianLayer, PosteriorTensor
from pytest_bnn.records.evidence import LayerFinding, Measurement

#: What to do where `not_finite` found something.
NOT_FINITE = (
    "sigma must be finite and above 0: an infinite rho comes from moped_delta * abs(weight) above 88, "
    "a sigma of 0 from collapse or half precision; the prior's sigma must be above 0"
)


def not_finite(layers: tuple[BayesianLayer, ...]) -> list[LayerFinding]:
    """Name every tensor of a posterior or prior for which no finite KL exists, and why."""
    found = []
    for layer in layers:
        for tensor in layer.tensors:
            sigma = tensor.sigma
            checks = (
                ("mu", ~torch.isfinite(tensor.mu), "NaN or infinite"),
                ("sigma", ~torch.isfinite(sigma), "NaN or infinite"),
                ("sigma", sigma <= 0, "0"),
                ("prior sigma", ~(tensor.prior_sigma > 0), "not above 0"),
                ("prior mu", ~torch.isfinite(tensor.prior_mu), "NaN or infinite"),
            )
            for what, bad, problem in checks:
                if bool(bad.any()):
                    finding = f"its {tensor.role}: {what} is {problem} in {int(bad.sum()):,} of {tensor.count:,} places"
                    found.append(LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding))
                    break
    return found


def counted(sick: list[LayerFinding]) -> tuple[Measurement, ...]:
    """Count what `not_finite` found, and how much of it is NaN or infinite."""
    broken = sum("NaN or infinite" in one.finding for one in sick)
    return (
        Measurement(name=TENSORS_WITHOUT_KL, value=len(sick)),
        Measurement(name=TENSORS_NOT_FINITE, value=broken),
    )


def all_zero(tensors: tuple[PosteriorTensor, ...]) -> tuple[Measurement, ...]:
    """Say that every sigma of the model is 0, where it is."""
    zero = all(bool((tensor.sigma == 0).all()) for tensor in tensors)
    return (Measurement(name="share of sigma that is 0", value=1.0),) if zero else ()


#: What to do where `overflowing` found something.
TOO_FAR = (
    "bring mu back toward its prior, or make the prior wider: a training that diverged, or a prior's sigma near 0, "
    "takes the KL beyond the largest number"
)


def overflowing(layers: tuple[BayesianLayer, ...]) -> list[LayerFinding]:
    """Name the tensor that is furthest from its prior, where all are finite and the closed form of the KL is not."""
    if not_finite(layers) or math.isfinite(sum(t.kl_sum() for layer in layers for t in layer.tensors)):
        return []
    far = {
        (layer, tensor): float(((tensor.mu.detach() - tensor.prior_mu).abs() / tensor.prior_sigma).max())
        for layer in layers
        for tensor in layer.tensors
    }
    layer, tensor = max(far, key=lambda pair: far[pair])
    finding = f"its {tensor.role}: mu is up to {far[layer, tensor]:.3g} of its prior's sigmas away from its prior"
    return [LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding)]
