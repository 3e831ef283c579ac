"""The parameters of a conversion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Estimator = Literal["Reparameterization", "Flipout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The parameters of a conversion, validated.

    Args:
        prior_mu: Mean of the prior of every weight. The library leaves it here under MOPED too (faults.md, A4).
        prior_sigma: Standard deviation of the prior of every weight, above 0.
        posterior_mu_init: Mean of the random posterior means; used without MOPED only.
        posterior_rho_init: Mean of the random rho; used without MOPED only.
        type: The estimator, ``"Reparameterization"`` or ``"Flipout"``.
        moped_enable: Whether the posterior starts at the network's own weights: mu = w, sigma = delta * abs(w).
        moped_delta: That delta, above 0.

    Source: Krishnan, Subedar and Tickoo 2020 for MOPED; bayesian-torch's ``dnn_to_bnn`` for the names.
    """

    prior_mu: float = 0.0
    prior_sigma: float = 1.0
    posterior_mu_init: float = 0.0
    posterior_rho_init: float = -3.0
    type: Estimator = "Reparameterization"
    moped_enable: bool = True
    moped_delta: float = 0.1

    def __post_init__(self) -> None:
        for name in ("prior_mu", "prior_sigma", "posterior_mu_init", "posterior_rho_init", "moped_delta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, not {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, not {value!r}")
        if self.prior_sigma <= 0 or self.moped_delta <= 0:
            raise ValueError("prior_sigma and moped_delta must be above 0")
        if self.type not in ("Reparameterization", "Flipout"):
            raise ValueError(f"type must be 'Reparameterization' or 'Flipout', not {self.type!r}")
        if not isinstance(self.moped_enable, bool):
            raise TypeError(f"moped_enable must be True or False, not {self.moped_enable!r}")
