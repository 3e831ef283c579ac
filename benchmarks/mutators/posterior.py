"""How mu, sigma and the prior of one posterior tensor are broken."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.mutators.case import EXTREMES, FACTORS, Apply, Case, Ways, first_is_nan, tensor_of, times
from pytest_bnn.libraries.posterior import PosteriorTensor


def of_posterior(tensor: PosteriorTensor, partner: PosteriorTensor | None) -> Ways:
    """Return every way to break mu, sigma and prior; ``partner`` is another tensor of the shape, where there is one."""
    yield from _of_values("mu", tensor, tensor.mu_name, partner)
    yield "mu", "frozen", lambda case: tensor_of(case, tensor).mu.requires_grad_(False)
    yield "mu", "aliased with the teacher", lambda case: _alias_teacher(tensor_of(case, tensor), case.teacher)
    yield from _of_values("sigma", tensor, tensor.rho_name, partner)
    yield "sigma", "frozen", lambda case: tensor_of(case, tensor).rho.requires_grad_(False)
    for attribute, name in (("prior mean", tensor.prior_mu_name), ("prior sigma", tensor.prior_sigma_name)):
        for way in _of_values(attribute, tensor, name, partner):
            if way[1] not in ("permuted", "aliased"):  # constants, which nobody writes to
                yield way
    yield "prior mean", "aliased with mu", lambda case: _alias_prior(tensor_of(case, tensor))


def _of_values(attribute: str, tensor: PosteriorTensor, name: str, partner: PosteriorTensor | None) -> Ways:
    def changed(change: Callable[[Tensor], Tensor]) -> Apply:
        def apply(case: Case) -> None:
            value = getattr(tensor_of(case, tensor).module, name)
            with torch.no_grad():
                value.copy_(change(value))

        return apply

    for factor in FACTORS if attribute == "mu" else EXTREMES:
        yield attribute, f"scaled by {factor}", changed(wider(factor) if attribute == "sigma" else times(factor))
    yield attribute, "permuted", changed(lambda value: value.roll(1, 0))
    yield attribute, "NaN", changed(lambda value: first_is_nan(value.clone()))
    if partner is None:
        return
    names = {tensor.mu_name: partner.mu_name, tensor.rho_name: partner.rho_name}
    names |= {tensor.prior_mu_name: partner.prior_mu_name, tensor.prior_sigma_name: partner.prior_sigma_name}

    def swap(case: Case) -> None:
        one = getattr(tensor_of(case, tensor).module, name)
        other = getattr(tensor_of(case, partner).module, names[name])
        with torch.no_grad():
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def alias(case: Case) -> None:
        setattr(tensor_of(case, tensor).module, name, getattr(tensor_of(case, partner).module, names[name]))

    yield attribute, "swapped", swap
    yield attribute, "aliased", alias


def wider(by: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Turn rho into that of a sigma ``by`` times as wide."""
    return lambda rho: (by * nn.functional.softplus(rho.double())).expm1().log().to(rho.dtype)


def _alias_teacher(tensor: PosteriorTensor, teacher: nn.Module) -> None:
    tensor.mu.data = getattr(teacher.get_submodule(tensor.path), tensor.role).data


def _alias_prior(tensor: PosteriorTensor) -> None:
    tensor.module._buffers[tensor.prior_mu_name] = tensor.mu.detach()
