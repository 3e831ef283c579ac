"""Posteriors and priors for which no finite KL exists."""

from __future__ import annotations

import torch

from pytest_bnn.libraries.posterior import BayesianLayer
from pytest_bnn.records.evidence import LayerFinding

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
                    finding = f"{tensor.role}: {what} is {problem} in {int(bad.sum()):,} of {tensor.count:,} places"
                    found.append(LayerFinding(path=layer.path, kind=layer.kind, ok=False, finding=finding))
                    break
    return found
