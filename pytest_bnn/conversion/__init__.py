"""From a deterministic network to a Bayesian one, as bayesian-torch's ``dnn_to_bnn`` does it: plan first, then a copy.

What the library would convert wrongly is mended where that can be done faithfully (`plan`, `layers`, `attention`), and
refused where it cannot.
"""

from __future__ import annotations

import torch
from torch import nn

from pytest_bnn.conversion.assembly import build
from pytest_bnn.conversion.parameters import Conversion, Estimator
from pytest_bnn.conversion.plan import CONVERTIBLE, make_plan
from pytest_bnn.errors import ConversionError
from pytest_bnn.libraries.posterior import bayesian_layers
from pytest_bnn.network.isolation import preserved_random_state

__all__ = ["CONVERTIBLE", "Conversion", "Estimator", "convert", "convert_with"]


def convert(
    model: nn.Module,
    *,
    prior_mu: float = 0.0,
    prior_sigma: float = 1.0,
    posterior_mu_init: float = 0.0,
    posterior_rho_init: float = -3.0,
    type: Estimator = "Reparameterization",
    moped_enable: bool = True,
    moped_delta: float = 0.1,
) -> nn.Module:
    """Return a Bayesian copy of a network; the network itself is not touched.

    Every Linear, convolution and transposed convolution becomes the Bayesian layer that bayesian-torch's ``dnn_to_bnn``
    makes, and so do the projections of attention; what the library gets wrong is mended or refused. Device, dtype,
    requires_grad, train/eval modes, hooks and sharing survive. With MOPED the global random state is not used; without
    it the posterior is drawn from it, as by any initialisation.

    Args:
        model: The deterministic network.
        prior_mu: Prior mean. All parameters are those of `Conversion`.
        prior_sigma: Prior standard deviation.
        posterior_mu_init: Mean of the random posterior means, without MOPED.
        posterior_rho_init: Mean of the random rho, without MOPED.
        type: ``"Reparameterization"`` or ``"Flipout"``.
        moped_enable: Start at the network's own weights.
        moped_delta: sigma / abs(weight) at the start.

    Raises:
        ConversionError: Some part cannot be converted faithfully; it names every such module and why.
        TypeError: ``model`` is no module, or a parameter has the wrong type.
        ValueError: A parameter is out of range.
    """
    return convert_with(
        model,
        Conversion(
            prior_mu=prior_mu,
            prior_sigma=prior_sigma,
            posterior_mu_init=posterior_mu_init,
            posterior_rho_init=posterior_rho_init,
            type=type,
            moped_enable=moped_enable,
            moped_delta=moped_delta,
        ),
    )


def convert_with(model: nn.Module, conversion: Conversion) -> nn.Module:
    """Do as `convert`, with the parameters as one record."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    with preserved_random_state():
        plan = make_plan(model, conversion)
    if plan.obstacles:
        raise ConversionError(
            f"{type(model).__name__} cannot be converted, and nothing was touched: " + "; ".join(plan.obstacles),
            fix="replace these modules by torch.nn's own Linear or convolutions, "
            "or convert the parts of the network that can be",
        )
    converted = build(model, plan, conversion)
    _check_sigma(converted)
    return converted


def _check_sigma(model: nn.Module) -> None:
    for layer in bayesian_layers(model):
        for tensor in layer.tensors:
            largest = tensor.rho.detach().max() if tensor.count else tensor.rho.new_zeros(())
            if bool(torch.isfinite(torch.log1p(torch.exp(largest)))):  # sigma grows with rho
                continue
            raise ConversionError(
                f"{tensor.name} got a sigma that is not finite in {tensor.mu.dtype}, and nothing was touched",
                fix="use a smaller moped_delta: the library overflows where moped_delta * abs(weight) exceeds 88",
            )
