"""The share of a known gradient in a loss's gradient, tensor by tensor, and the weight of the KL that follows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.libraries.protocol import Convention

#: Allowed relative error of the weight, its spread between tensors, and the part of a gradient that is not KL.
TOLERANCE = 1e-3

#: The same of an identity that is taken element by element, in full precision.
_EXACT = 2e-4

#: The same where a gradient is rounded to half precision on its way.
_HALF_TOLERANCE = 5e-2

_SHARE: dict[Convention, str] = {
    "sum": "of the summed KL",
    "mean per tensor": "of the mean per tensor",
    "mean over all weights": "of the mean over all weights",
}


def tolerance_of(*tensors: PosteriorTensor) -> float:
    """Return the relative error that is allowed in the coarsest dtype among some tensors."""
    full = all(tensor.mu.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return TOLERANCE if full else _HALF_TOLERANCE


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """For one tensor, the weight of the summed KL's gradient in the loss's gradient.

    ``residual`` is the share of the loss's gradient that the KL's does not explain. ``of`` says what was compared: the
    gradient to rho, or how the gradient to mu changes with the prior's mean.
    """

    tensor: PosteriorTensor
    weight: float
    residual: float
    of: Literal["rho", "prior"] = "rho"
    at_most: float | None = None

    @property
    def allowed(self) -> float:
        """Which part of the gradient may be something else, as rounding is."""
        return tolerance_of(self.tensor) if self.at_most is None else self.at_most


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of a KL term in a convention, and how far the tensors' weights are from it."""

    convention: Convention
    value: float
    spread: float

    @property
    def share(self) -> str:
        """The KL term that the weight belongs to, in words."""
        return _SHARE[self.convention]


def by_rho(tensor: PosteriorTensor, gradient: Tensor | None) -> Fit | None:
    """Fit the gradient to rho; None where the KL has none, since sigma is the prior's."""
    if tensor.sigma_is_the_prior():
        return None
    return _fit(tensor, gradient, tensor.kl_gradient("rho"), "rho")


def by_entropy(tensor: PosteriorTensor, gradient: Tensor | None) -> Fit | None:
    """Fit the gradient to rho with that of the negative entropy, -log sigma, which is a part of the KL."""
    inverse = -1 / tensor.sigma.double().clamp_min(1e-300)
    return _fit(tensor, gradient, tensor.data_to_rho(inverse, torch.ones_like(inverse)), "rho")


def by_own_prior(tensors: Sequence[PosteriorTensor], gradients: Sequence[Tensor | None]) -> list[Fit]:
    """Fit the gradients to rho with those of the KL to one Gaussian prior of any width; none where it is none.

    That KL is ``sigma^2 / (2 s^2) - log sigma`` and what does not depend on sigma, for a prior of the width s, which is
    read off where it shows the most.
    """
    pairs = []
    best = (0.0, 0.0)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        if gradient is None or not bool(gradient.any()):
            return []
        sigma = tensor.sigma.double().clamp_min(1e-300)
        one = torch.ones_like(sigma)
        basis = torch.stack([tensor.data_to_rho(part, one).flatten() for part in (-1 / sigma, sigma)], 1)
        pairs.append(basis)
        scale = basis.norm(dim=0)
        if len(basis) < 3 or not bool(torch.isfinite(basis).all()) or not bool((scale > 0).all()):
            continue
        found = gradient.detach().double().flatten()
        share = torch.linalg.lstsq(basis / scale, found[:, None]).solution[:, 0]
        precision = float(share[1] / share[0] * scale[0] / scale[1])
        best = max(best, (float(share[1] / share[0]), precision))
    if best[1] <= 0:
        return []
    fits = [
        _fit(tensor, gradient, basis[:, 0] + best[1] * basis[:, 1], "rho")
        for tensor, gradient, basis in zip(tensors, gradients, pairs, strict=True)
    ]
    return [fit for fit in fits if fit is not None and fit.weight > 0 and fit.residual <= fit.allowed]


def by_own_width(tensor: PosteriorTensor, to_mu: Tensor | None, to_rho: Tensor | None) -> Fit | None:
    """Fit the gradients to mu and rho with those of the KL to one Gaussian prior of the tensor's own; None without fit.

    Its width may follow the tensor's weights, as empirical Bayes has it, so that it is another one where mu moves.
    """
    if to_mu is None or to_rho is None or to_mu.shape != tensor.mu.shape or tensor.count < 3:
        return None
    sigma, mu = tensor.sigma.double().clamp_min(1e-300), tensor.mu.detach().double().flatten()
    one = torch.ones_like(sigma)
    basis = torch.stack([tensor.data_to_rho(part, one).flatten() for part in (-1 / sigma, sigma)], 1)
    of_rho = _solved(basis, to_rho)
    of_mu = _solved(torch.stack([mu, torch.ones_like(mu)], 1), to_mu)
    if of_rho is None or of_mu is None:
        return None
    (weight, pull, off), (slope, _, off_mean) = of_rho, of_mu
    allowed = tolerance_of(tensor)
    if weight <= 0 or pull <= 0 or max(off, off_mean) > allowed or abs(slope - pull) > allowed * pull:
        return None
    return Fit(tensor, weight, max(off, off_mean))


def _solved(basis: Tensor, gradient: Tensor) -> tuple[float, float, float] | None:
    """Return the factors of two directions in a gradient, and the share of it that they leave, if they can be had."""
    scale, found = basis.norm(dim=0), gradient.detach().double().flatten()
    if not bool(torch.isfinite(basis).all()) or not bool((scale > 0).all()) or not bool(found.any()):
        return None
    factors = torch.linalg.lstsq(basis / scale, found[:, None]).solution[:, 0] / scale
    first, second = (float(factor) for factor in factors)
    return first, second, float((found - basis @ factors).norm() / found.norm())


def by_sample(tensor: PosteriorTensor, to_mu: Tensor | None, to_rho: Tensor | None, noise: Tensor) -> Fit | None:
    """Fit the gradient to rho with that of a KL which is estimated from the drawn weights, log q(w) - log p(w).

    Whatever the prior p is, it pulls on rho through w alone, as on mu: ``to_rho = (to_mu * eps - weight / sigma) *
    dsigma / drho`` element by element. Source: Blundell et al. 2015, section 3.2, equations 3 and 4.

    Args:
        tensor: A tensor that was drawn once.
        to_mu: The gradient to mu in the cut.
        to_rho: The gradient to rho in the cut.
        noise: What was drawn, ``w - mu``.
    """
    if to_mu is None or to_rho is None or to_mu.shape != tensor.mu.shape:
        return None
    sigma = tensor.sigma.double().clamp_min(1e-300)
    one = torch.ones_like(sigma)
    through = tensor.data_to_rho(to_mu, noise.double() / sigma)
    return _fit(tensor, to_rho - through, tensor.data_to_rho(-1 / sigma, one), "rho")


def by_any_prior(tensor: PosteriorTensor, to_rho: Tensor | None, change: Tensor, moved: Tensor) -> Fit | None:
    """Fit the gradient to rho with that of a KL to any fixed prior p, by how the gradient to mu changes.

    Such a KL is ``E[-log p(w)] - log sigma`` and constants. A normal density solves the heat equation, so that
    ``d E[f] / d sigma = sigma * d2 E[f] / d mu2`` for any f: with the curvature along mu read off, element by element,
    what is left of the gradient to sigma is ``-weight / sigma``. Source: Price 1958; Opper and Archambeau 2009.

    Args:
        tensor: A tensor with a sigma for each entry.
        to_rho: The gradient to rho in the cut.
        change: How the gradient to mu changes,
        moved: where mu moves by so little.
    """
    if to_rho is None or tensor.rho_parameter.shape != tensor.mu.shape or change.shape != moved.shape:
        return None
    sigma = tensor.sigma.double()
    one = torch.ones_like(sigma)
    slope = tensor.data_to_rho(one, one)
    usable = (moved != 0) & (slope > 0) & (sigma > 0)
    if not bool(usable.any()):
        return None
    curvature = change[usable] / moved[usable]
    weights = sigma[usable] * (sigma[usable] * curvature - to_rho[usable] / slope[usable])
    weight = float(weights.median())
    apart = float((weights - weight).abs().median())
    return Fit(tensor, weight, apart / abs(weight) if weight else 1.0, "rho", _EXACT)


def by_prior(tensor: PosteriorTensor, before: Tensor | None, after: Tensor | None, shift: float) -> Fit:
    """Fit how the gradient to mu changes with the prior's mean: by ``-weight * shift / prior_sigma^2``."""
    slope = (-shift / tensor.prior_sigma.detach().double() ** 2).expand(tensor.mu.shape)
    gradient = None if before is None or after is None else after - before
    # Below the rounding of the larger gradient a change is none.
    if gradient is not None and after is not None:
        noise = 16 * torch.finfo(tensor.mu.dtype).eps * float(after.norm())
        gradient = gradient if float(gradient.norm()) > noise else None
    found = _fit(tensor, gradient, tensor.mu_gradient(slope), "prior")
    return found if found is not None else Fit(tensor, 0.0, 0.0, "prior")


def _fit(
    tensor: PosteriorTensor, gradient: Tensor | None, direction: Tensor, of: Literal["rho", "prior"]
) -> Fit | None:
    direction = direction.flatten()
    usable = torch.isfinite(direction)
    direction = direction[usable]
    size = float(direction @ direction)
    if size == 0:
        return None
    if gradient is None or not bool(gradient.any()):
        return Fit(tensor, 0.0, 0.0, of)
    found = gradient.detach().double().flatten()[usable]
    weight = float(found @ direction) / size
    return Fit(tensor, weight, float((found - weight * direction).norm() / found.norm()), of)


def in_convention(weight: Weight, fit: Fit, total: int) -> float:
    """Return the weight of a tensor's KL in a convention; ``total`` is the number of all weights."""
    return fit.weight * _factor(weight.convention, fit, total)


def _factor(convention: Convention, fit: Fit, total: int) -> int:
    return {"mean per tensor": fit.tensor.count, "mean over all weights": total, "sum": 1}[convention]


def weight_of(fits: Sequence[Fit], conventions: Sequence[Convention], expected: float | None, total: int) -> Weight:
    """Return the convention under which the weights of most tensors agree, their median, and their spread.

    The expected weight stands for the median where some tensor has it.

    Where tensors agree under several, as those of one size do, the expected weight decides, and without one the
    library's own convention, which comes first.
    """
    allowed = tolerance_of(*(fit.tensor for fit in fits))
    best, least = Weight(conventions[0], 0.0, 0.0), (math.inf, False, 0.0)
    for convention in conventions:
        weights = [fit.weight * _factor(convention, fit, total) for fit in fits]
        middle = statistics.median_low(weights) if weights else 0.0
        if expected is not None and any(abs(w / expected - 1) <= allowed for w in weights):
            middle = expected
        errors = [abs(w / middle - 1) for w in weights] if middle else [0.0]
        off = sum(error > allowed for error in errors)
        far = expected is not None and abs(middle / expected - 1) > allowed
        key = (off, far, statistics.median(errors) if off else 0.0)
        if key < least:
            best, least = Weight(convention, middle, max(errors)), key
    return best


def notes_on(problem: str, found: Weight, seen_by_prior: bool, fits: list[Fit]) -> list[str]:
    """Say how the weight was read off, and what it is on the KL of an ELBO."""
    notes = []
    if fits[0].of == "prior":
        notes.append(
            "every sigma is still the prior's, where the KL has no gradient to it: the weight is read off by moving "
            "the prior's mean"
        )
    if found.value and not seen_by_prior:
        notes.append("the loss does not notice when the layers' prior moves: it keeps a prior of its own")
    if found.value and found.convention == "mean per tensor" and not problem:
        counts = [fit.tensor.count for fit in fits]
        notes.append(
            f"on the KL of an ELBO (the sum over weights) that is a weight of {found.value / max(counts):.2g} in the "
            f"largest tensor and {found.value / min(counts):.2g} in the smallest"
        )
    return notes
