"""Mean-field Gaussian posteriors: what a tensor and a layer of one are, whatever library they come from.

Sigma is the library's own function of its parameter, with that function's own derivative; the KL of two normals is
written once.
"""

from __future__ import annotations

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
        whole = torch.broadcast_tensors(*(t.detach() for t in (self.mu, self.rho, self.prior_mu, self.prior_sigma)))
        total = 0.0
        for part in zip(*(tensor.flatten().split(_PART) for tensor in whole), strict=True):
            mu, rho, prior_mu, prior_sigma = (tensor.double() for tensor in part)
            total += float(kl_of_normals(mu, self.map.of(rho), prior_mu, prior_sigma).sum())
        return total

    def kl_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gradient of `kl_sum` to `mu_parameter` and to `rho_parameter`, in float64."""
        mu, rho, prior_mu, prior_sigma = self._double()
        sigma = self.map.of(rho)
        to_mu = (mu - prior_mu) / prior_sigma**2
        to_rho = (sigma / prior_sigma**2 - 1 / sigma) * self.map.slope(rho)
        return self._to_parameter(self.mu_name, to_mu), self._to_parameter(self.rho_name, to_rho)

    def is_prior(self) -> bool:
        """Return whether the posterior is the prior, up to rounding: where it started from it."""
        return self.sigma_is_the_prior() and self.mu_is_the_prior()

    def mu_is_the_prior(self) -> bool:
        """Return whether mu is the prior's up to rounding, so that the KL has no gradient to mu."""
        mu, _, prior_mu, prior_sigma = self._double()
        return bool(((mu - prior_mu).abs() <= self._rounding() * prior_sigma).all())

    def sigma_is_the_prior(self) -> bool:
        """Return whether sigma is the prior's up to rounding, so that the KL has no gradient to rho."""
        prior_sigma = self.prior_sigma.detach().expand(self.mu.shape)
        for part in (slice(0, 1), slice(None)):  # one entry is mostly enough to say no
            sigma, prior = (t.flatten()[part].double() for t in (self.sigma, prior_sigma))
            if not bool(((sigma / prior - 1).abs() <= self._rounding()).all()):
                return False
        return True

    def _rounding(self) -> float:
        return 16 * torch.finfo(self.mu.dtype).eps

    def data_to_rho(self, to_weight: Tensor, eps: Tensor) -> Tensor:
        """Return the part of rho's gradient that comes through the weight: ``to_weight * eps * dsigma / drho``."""
        slope = self.map.slope(self.rho.detach().double())
        return self._to_parameter(self.rho_name, to_weight.double() * eps.double() * slope)

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

    def _double(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mu, rho, prior_mu, prior_sigma = (
            t.detach().double() for t in (self.mu, self.rho, self.prior_mu, self.prior_sigma)
        )
        return mu, rho.expand(mu.shape), prior_mu, prior_sigma

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
