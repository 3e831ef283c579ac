"""What the numbers of one posterior tensor tell of its history: whether a training step was ever taken on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.stats.normal import correlation_scores, shape_p

#: Standard deviation of the random start of mu and rho in bayesian-torch's layers (their ``init_parameters``).
RANDOM_START = 0.1

#: Error rate at which a tensor at its random start is not recognized as such.
_START_ERROR = 1e-4

#: Places of a tensor from which its distribution can be told.
_FEW = 20

#: Values of a tensor that tell whether sigma is one share of abs(mu): a step of training moves them all.
_ENOUGH = 1 << 16

#: A rho at or below this is the floor of MOPED's ``log(expm1(.) + 1e-20)``, docs/faults.md A6.
_FLOOR = -40.0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one posterior tensor tells beside the weight of the teacher that it is paired with.

    Attributes:
        name: The tensor's name.
        size: How many places it has.
        cosine: Of mu to the teacher's weight; NaN where one of them is 0.
        equal: Whether mu is the teacher's weight to the bit, in the coarser dtype of the two.
        fresh: Whether sigma / abs(mu) is one number at all places, as MOPED sets it: no step was taken.
        untrained_sigma: Whether sigma / abs(teacher's weight) is one number, so that sigma is where MOPED set it.
        random_start: Whether mu and rho are where the library's constructor put them.
    """

    name: str
    size: int
    cosine: float
    equal: bool
    fresh: bool
    untrained_sigma: bool
    random_start: bool

    @property
    def untouched(self) -> bool:
        """Whether nothing was ever learned here."""
        return self.equal or self.fresh or self.random_start


def fingerprint(tensor: PosteriorTensor, weight: Tensor) -> Fingerprint:
    """Read the history of a posterior tensor from its numbers and those of the teacher's weight."""
    mu, rho = tensor.mu.detach(), tensor.rho.detach()
    weight = weight.detach().to(mu.device)
    rho = rho.expand_as(mu) if rho.shape != mu.shape else rho
    equal, fresh = equal_values(mu, weight), is_one_ratio(some(rho), some(mu))
    return Fingerprint(
        name=tensor.name,
        size=mu.numel(),
        cosine=cosine(tensor, weight),
        equal=equal,
        fresh=fresh,
        untrained_sigma=fresh if equal else is_one_ratio(some(rho), some(weight)),
        random_start=not fresh and _is_random_start(some(mu), some(rho)),
    )


def some(values: Tensor) -> Tensor:
    """Give at most `_ENOUGH` values of a tensor, evenly spread over it, flat."""
    flat = values.flatten()
    return flat[:: -(-flat.numel() // _ENOUGH) or 1]


def cosine(tensor: PosteriorTensor, weight: Tensor) -> float:
    """Give the cosine of the posterior mean to a weight, in [-1, 1]; NaN where one of them is 0 or not finite."""
    mu, weight = tensor.mu.detach().double().flatten(), weight.detach().to(tensor.mu.device).double().flatten()
    return float(mu @ weight / (mu.norm() * weight.norm()))


def equal_values(mu: Tensor, weight: Tensor) -> bool:
    """Say whether two tensors are equal to the bit, in the coarser dtype of the two."""
    return torch.equal(mu.to(weight.dtype), weight) or torch.equal(weight.to(mu.dtype), mu)


def is_one_ratio(rho: Tensor, reference: Tensor) -> bool:
    """Say whether sigma / abs(reference) is one number over the tensor, to the rounding of both dtypes.

    Places where the reference is 0, or where sigma is at the floor, tell nothing and are left out. Where all others
    have the same size, a constant sigma would look the same, so the answer is no.

    Args:
        rho: sigma = log(1 + exp(rho)).
        reference: Of the same shape: mu, or the teacher's weight.
    """
    places, rho_places = reference.double().abs().flatten(), rho.double().flatten()
    usable = (places > 0) & torch.isfinite(places) & torch.isfinite(rho_places) & (rho_places > _FLOOR)
    if int(usable.sum()) < 2:
        return False
    size, r = places[usable], rho_places[usable]
    sigma = torch.nn.functional.softplus(r)
    ratio = sigma.log() - size.log()
    typical = ratio.median()
    # MOPED rounds delta * |w|, its expm1 and its logarithm; rho's own rounding moves sigma by |rho| eps of itself.
    fine, coarse = _precision(reference), _precision(rho)
    step = coarse.eps * (r.abs().clamp_min(float(r.median().abs())) + 2) + fine.eps
    subnormal = coarse.smallest_normal * coarse.eps / sigma + fine.smallest_normal * fine.eps / size
    allowed = 2 * (step + subnormal)
    varies = float(size.log().max() - size.log().min()) > 4 * float(allowed.median())
    return varies and bool(((ratio - typical).abs() <= allowed).all())


def _precision(values: Tensor) -> torch.finfo:
    """Give the limits of the coarsest dtype that holds the values exactly: a model may have been cast up."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(values.to(dtype).to(values.dtype).nan_to_num(), values.nan_to_num()):
            return torch.finfo(dtype)
    return torch.finfo(values.dtype)


def _is_random_start(mu: Tensor, rho: Tensor) -> bool:
    mu, rho = mu.double().flatten(), rho.double().flatten()
    if mu.numel() < _FEW or not bool(torch.isfinite(mu).all() & torch.isfinite(rho).all()):
        return False
    return all(_is_normal(values) for values in (mu, rho))


def _is_normal(values: Tensor) -> bool:
    """Say whether values may have come from a normal distribution with the spread of the random start."""
    from scipy.stats import chi2

    centred = (values - values.mean()) / RANDOM_START
    freedom = len(values) - 1
    square = float(centred.square().sum())
    spread = 2 * min(float(chi2.cdf(square, freedom)), float(chi2.sf(square, freedom)))
    return spread > _START_ERROR and shape_p(centred, 0.0) > _START_ERROR


def score_bound(tensors: int, error: float) -> float:
    """Give the score that any of so many standard normal ones exceeds with at most this probability (Bonferroni)."""
    from scipy.stats import norm

    return float(norm.isf(error / tensors))


def relation(cosines: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Give the largest score of single cosines, and the score of all of them together, weighed by their sizes.

    Under independence of the weights (isotropic in one of each pair), each is standard normal: see
    `stats.normal.correlation_scores`. Stouffer's sum with weights sqrt(n) is standard normal again.
    """
    scores = correlation_scores(cosines, sizes)
    pooled = (scores * sizes.sqrt()).sum() / sizes.sum().sqrt()
    return float(scores.max()), float(pooled)
