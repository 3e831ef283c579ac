"""Mean-field Gaussian posteriors: what a tensor and a layer of one are, whatever library they come from.

Sigma is the library's own function of its parameter, with that function's own derivative; the KL of two normals is
written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pytest_bnn.network.graph import leaves_behind

#: Numbers of a tensor that are looked at together, so that what is computed of them in float64 needs little memory.
_PART = 1 << 17


@dataclass(frozen=True, slots=True)
class SigmaMap:
    """How a library computes a standard deviation from the parameter that it trains, here called rho.

    Attributes:
        name: ``softplus`` for ``log(1 + exp(rho))``, ``exp`` for ``exp(rho)``.
    """

    name: Literal["softplus", "exp"]

    def into(self, out: Tensor, rho: Tensor) -> Tensor:
        """Write sigma, as the layers compute it, into a tensor of rho's shape; return that tensor."""
        out.copy_(rho).exp_()
        return out.log1p_() if self.name == "softplus" else out

    def of(self, rho: Tensor) -> Tensor:
        """Return sigma with its graph; finite wherever rho is."""
        return nn.functional.softplus(rho, threshold=80) if self.name == "softplus" else rho.exp()

    def slope(self, rho: Tensor) -> Tensor:
        """Return the derivative of sigma with respect to rho."""
        return torch.sigmoid(rho) if self.name == "softplus" else rho.exp()


SOFTPLUS, EXP = SigmaMap("softplus"), SigmaMap("exp")


def kl_of_normals(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) element by element, in nats.

    Source: Kingma and Welling 2014, appendix B.
    """
    return torch.log(prior_sigma / sigma) + (sigma**2 + (mu - prior_mu) ** 2) / (2 * prior_sigma**2) - 0.5


def in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield tensors of one shape, or broadcast to one, flat and in parts: so many numbers of each at a time."""
    whole = torch.broadcast_tensors(*tensors)
    yield from zip(*(tensor.flatten().split(_PART) for tensor in whole), strict=True)


def not_finite(*tensors: Tensor) -> int:
    """Count the entries of some tensors that are NaN or infinite."""
    return sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors)


def slot(module: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """Return the dictionary and key where a module keeps an attribute; None where it is computed.

    With a parametrization (`torch.nn.utils.parametrize`) that is its place among the parametrizations.
    """
    for place in ("_parameters", "_buffers", "__dict__"):
        found: dict[str, Any] = module.__dict__ if place == "__dict__" else module.__dict__[place]
        if name in found:
            return found, name
    parametrized = module._modules.get("parametrizations")
    if parametrized is not None and name in parametrized._modules:
        return parametrized._modules, name
    return None


def leaf_of(value: Tensor) -> Tensor | None:
    """Return the parameter that a tensor is computed from; itself where it is one, None where there are several."""
    if value.grad_fn is None:
        return value
    leaves = leaves_behind(value)
    return next(iter(leaves.values())) if len(leaves) == 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorTensor:
    """The mean-field Gaussian posterior N(mu, sigma^2) of one weight or bias tensor.

    Its properties read the layer's attributes at the time of the call. ``prior_is_log`` says that the attribute
    behind ``prior_sigma`` holds the logarithm.
    """

    path: str
    role: Literal["weight", "bias"]
    module: nn.Module
    mu_name: str
    rho_name: str
    eps_name: str
    prior_mu_name: str
    prior_sigma_name: str
    map: SigmaMap = SOFTPLUS
    prior_is_log: bool = False

    @property
    def name(self) -> str:
        """The tensor's name for people: ``layer1.0.conv1.weight``."""
        return f"{self.path}.{self.role}" if self.path else self.role

    @property
    def mu(self) -> Tensor:
        """The posterior mean: a parameter, or what is computed from one."""
        return self._get(self.mu_name)

    @property
    def rho(self) -> Tensor:
        """What sigma is computed from: a parameter, or what is computed from one; it may be shared along dimensions."""
        return self._get(self.rho_name)

    @property
    def mu_parameter(self) -> Tensor:
        """The parameter that training moves mu by: mu itself, or the original of a parametrization."""
        return self._parameter(self.mu_name)

    @property
    def rho_parameter(self) -> Tensor:
        """The parameter that training moves sigma by: rho itself, or the original of a parametrization."""
        return self._parameter(self.rho_name)

    @property
    def sigma(self) -> Tensor:
        """The posterior standard deviation exactly as the layer computes it, of mu's shape, detached."""
        rho = self.rho.detach()
        sigma = self.map.into(torch.empty_like(rho), rho)
        return sigma if sigma.shape == self.mu.shape else sigma.expand(self.mu.shape)

    @property
    def wide(self) -> torch.dtype:
        """In what its numbers are looked at: float32, or float64 where mu is that."""
        return torch.float64 if self.mu.dtype == torch.float64 else torch.float32

    def with_sigma(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Yield tensors of mu's shape flat and in parts, and sigma beside them, as `wide` is; None stays None.

        Sigma is computed part by part, exactly as the layer computes it.
        """
        rho = self.rho.detach()
        there = [tensor.flatten() for tensor in tensors if tensor is not None]
        for *parts, of_rho in in_parts(*there, rho.expand(self.mu.shape).flatten()):
            rest = iter(parts)
            sigma = self.map.into(torch.empty_like(of_rho), of_rho).to(self.wide)
            yield *(None if tensor is None else next(rest) for tensor in tensors), sigma

    @property
    def prior_mu(self) -> Tensor:
        """The prior mean."""
        return self._prior(self.prior_mu_name)

    @property
    def prior_sigma(self) -> Tensor:
        """The prior standard deviation (bayesian-torch calls it prior variance, faults.md A10)."""
        found = self._prior(self.prior_sigma_name)
        return found.exp() if self.prior_is_log else found

    def flat_prior(self) -> tuple[Tensor, Tensor]:
        """Return prior mean and sigma detached, flat and contiguous: one number each where all are equal."""
        priors = [prior.detach() for prior in (self.prior_mu, self.prior_sigma)]
        if all(bool((prior == prior.flatten()[0]).all()) for prior in priors):
            mean, sigma = (prior.flatten()[:1].clone() for prior in priors)
        else:
            mean, sigma = (prior.expand(self.mu.shape).flatten() for prior in priors)
        return mean, sigma

    @property
    def count(self) -> int:
        """How many weights the tensor has."""
        return self.mu.numel()

    def kl_sum(self) -> float:
        """Return KL(posterior || prior), summed over the tensor, in nats, by the closed form in float64."""
        total = 0.0
        for part in self._parts(self.mu, self.rho, self.prior_mu, self.prior_sigma):
            mu, rho, prior_mu, prior_sigma = part
            total += float(kl_of_normals(mu, self.map.of(rho), prior_mu, prior_sigma).sum())
        return total

    def kl_gradient(self, of: Literal["mu", "rho"]) -> Tensor:
        """Return the gradient of `kl_sum` to `mu_parameter` or to `rho_parameter`, in float64."""
        found = torch.empty(self.mu.shape, dtype=torch.float64, device=self.mu.device)
        parts = self._parts(self.mu, self.rho, self.prior_mu, self.prior_sigma)
        for out, (mu, rho, prior_mu, prior_sigma) in zip(found.flatten().split(_PART), parts, strict=True):
            if of == "mu":
                out.copy_((mu - prior_mu) / prior_sigma**2)
            else:
                sigma = self.map.of(rho)
                out.copy_((sigma / prior_sigma**2 - 1 / sigma) * self.map.slope(rho))
        return self._to_parameter(self.mu_name if of == "mu" else self.rho_name, found)

    def is_prior(self) -> bool:
        """Return whether the posterior is the prior, up to rounding: where it started from it."""
        return self.sigma_is_the_prior() and self.mu_is_the_prior()

    def mu_is_the_prior(self) -> bool:
        """Return whether mu is the prior's up to rounding, so that the KL has no gradient to mu."""
        return all(
            bool(((mu - center).abs() <= self._rounding() * width).all())
            for mu, center, width in self._parts(self.mu, self.prior_mu, self.prior_sigma)
        )

    def sigma_is_the_prior(self) -> bool:
        """Return whether sigma is the prior's up to rounding, so that the KL has no gradient to rho."""
        for _, rho, width in in_parts(self.mu.detach(), self.rho.detach(), self.prior_sigma.detach()):
            sigma = self.map.into(torch.empty_like(rho), rho)
            if not bool(((sigma.double() / width.double() - 1).abs() <= self._rounding()).all()):
                return False
        return True

    def _rounding(self) -> float:
        return 16 * torch.finfo(self.mu.dtype).eps

    def data_to_rho(self, to_weight: Tensor, eps: Tensor) -> Tensor:
        """Return the part of rho's gradient that comes through the weight: ``to_weight * eps * dsigma / drho``."""
        found = torch.empty(self.mu.shape, dtype=torch.float64, device=self.mu.device)
        parts = self._parts(found, self.rho, to_weight, eps)
        for out, (_, rho, gradient, noise) in zip(found.flatten().split(_PART), parts, strict=True):
            torch.mul(gradient * noise, self.map.slope(rho), out=out)
        return self._to_parameter(self.rho_name, found)

    def noise_to_rho(self, to_weight: Tensor, noise: Tensor) -> Tensor:
        """Return what `data_to_rho` gives for a noise in units of the weight, ``sigma * eps``."""
        eps = torch.empty(self.mu.shape, dtype=torch.float64, device=self.mu.device)
        for out, (part, sigma) in zip(eps.flatten().split(_PART), self.with_sigma(noise), strict=True):
            torch.div(part.double(), sigma.double().clamp_min(1e-300), out=out)
        return self.data_to_rho(to_weight, eps)

    def mu_gradient(self, gradient: Tensor) -> Tensor:
        """Bring a gradient to mu to the parameter behind it."""
        return self._to_parameter(self.mu_name, gradient)

    def _to_parameter(self, name: str, gradient: Tensor) -> Tensor:
        """Bring a gradient of mu's shape to the parameter behind an attribute, by the chain rule."""
        with torch.enable_grad():
            value = self._get(name)
            gradient = gradient.expand(self.mu.shape)
            gradient = gradient.sum_to_size(value.shape) if value.shape != gradient.shape else gradient
            leaf = leaf_of(value)
            if leaf is None or leaf is value:
                return gradient
            (found,) = torch.autograd.grad(value, leaf, gradient.to(value), retain_graph=True)
        return found.double()

    def _parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield flat parts of tensors, broadcast to mu's shape, in float64."""
        for part in in_parts(*(tensor.detach() for tensor in tensors)):
            yield tuple(tensor.double() for tensor in part)

    def _parameter(self, name: str) -> Tensor:
        value = self._get(name)
        if value.is_leaf:
            return value
        return leaf if (leaf := leaf_of(value)) is not None else value

    def _prior(self, name: str) -> Tensor:
        value = getattr(self.module, name)
        if isinstance(value, Tensor):
            return value
        mu = self.mu
        return torch.full((), float(value), dtype=mu.dtype, device=mu.device)

    def _get(self, name: str) -> Tensor:
        value = getattr(self.module, name)
        assert isinstance(value, Tensor)
        return value
