"""What the numbers of one posterior tensor tell of its history: whether a training step was ever taken on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.libraries.bayesian_torch import RANDOM_START, start_of
from pytest_bnn.libraries.gaussian import SOFTPLUS, SigmaMap
from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.stats.normal import Sums, correlation_scores, shape_p

#: Error rate at which a tensor at its random start is not recognized as such.
_START_ERROR = 1e-4

#: Places of a tensor from which its distribution can be told.
FEW = 20

#: Values of a tensor that tell whether sigma is one share of abs(mu): a step of training moves them all.
_ENOUGH = 1 << 16

#: How much further than rounding moves sigma mu has to have moved, before a sigma that did not move means something.
FAR = 100.0

#: Cosine of mu to the teacher's weight above which a few steps may have brought it there.
_NEAR = 0.9

#: Roundings by which a weight that was computed in another order may differ, relative to the norm of its tensor.
_ROUNDINGS = 8

#: A rho at or below this is the floor of MOPED's ``log(expm1(.) + 1e-20)``, faults.md A6.
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
        random_start: Whether mu and rho are distributed as the library's constructor draws them.
        hidden: Whether mu is away from the teacher's weight, and rounding hides whether sigma went with it: so it is
            after a few steps in half precision, and after steps that are tiny.
    """

    name: str
    size: int
    cosine: float
    equal: bool
    fresh: bool
    untrained_sigma: bool
    random_start: bool
    hidden: bool = False

    @property
    def untouched(self) -> bool:
        """Whether nothing was ever learned here."""
        return self.equal or self.fresh or self.random_start


def fingerprint(tensor: PosteriorTensor, weight: Tensor | None) -> Fingerprint:
    """Read the history of a posterior tensor from its numbers, and from the teacher's weight where it has one."""
    mu, rho = tensor.mu.detach(), rho_of(tensor)
    fresh = is_one_ratio(some(rho), some(mu), tensor.map)
    equal, untrained, related = False, False, float("nan")
    if weight is not None:
        weight = weight.detach().to(mu.device)
        equal, related = equal_values(mu, weight), cosine(tensor, weight)
        untrained = fresh if equal else is_one_ratio(some(rho), some(weight), tensor.map)
    return Fingerprint(
        name=tensor.name,
        size=mu.numel(),
        cosine=related,
        equal=equal,
        fresh=fresh,
        untrained_sigma=untrained,
        random_start=not fresh and _is_random_start(some(mu), some(rho), start_of(tensor.module)),
        hidden=weight is not None and untrained and not equal and related > _NEAR and _is_hidden(tensor, weight),
    )


def _is_hidden(tensor: PosteriorTensor, weight: Tensor) -> bool:
    """Say whether most of mu moved by so little that sigma does not show it, and neither rounding nor a mask did it."""
    mu = tensor.mu.detach()
    coarse = getattr(torch, precision(mu).dtype)
    rounded = torch.equal(weight.to(coarse).to(mu.dtype), mu)  # both may have been cast up since
    masked = bool(((mu == 0) & (weight != 0)).any())
    apart, allowed = apart_from(mu, weight)
    return not (rounded or masked) and apart <= allowed and moved_by(tensor, weight, share=0.9) <= FAR


def apart_from(mu: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return how far mu is from a weight, as a share of the weight's norm, and how much of that rounding explains."""
    size = float(weight.double().norm())
    apart = float((mu.double() - weight.double()).norm()) / size if size else float("inf")
    return apart, _ROUNDINGS * max(torch.finfo(t.dtype).eps for t in (mu, weight))


def moved_by(tensor: PosteriorTensor, weight: Tensor, *, share: float = 0.5) -> float:
    """Return how far a share of mu is from the teacher's weight at most, in units of what rounding hides in sigma."""
    mu, rho = some(tensor.mu.detach()), some(rho_of(tensor))
    weight = some(weight.detach().to(mu.device))
    usable = usable_places(rho, weight)
    if not len(usable):
        return 0.0
    _, size, allowed = ratios(rho, weight, tensor.map)
    moved = (mu.double().flatten() - weight.double().flatten()).abs()[usable] / size
    return float(moved.quantile(share) / allowed.median())


def rho_of(tensor: PosteriorTensor) -> Tensor:
    """Return what sigma is computed from, detached and of mu's shape."""
    rho = tensor.rho.detach()
    return rho.expand_as(tensor.mu) if rho.shape != tensor.mu.shape else rho


def some(values: Tensor) -> Tensor:
    """Return at most `_ENOUGH` values of a tensor, evenly spread over it and over the places of a kernel, flat."""
    flat = values.flatten()
    step = -(-flat.numel() // _ENOUGH) or 1
    # Of a kernel of which the data reach the middle alone, a step of 9 or 36 would always give the same corner.
    while math.gcd(step, math.prod((2, 3, 5, 7, 11, 13))) > 1:
        step += 1
    return flat[::step]


def cosine(tensor: PosteriorTensor, weight: Tensor) -> float:
    """Return the cosine of the posterior mean to a weight, in [-1, 1]; NaN where one of them is 0 or not finite."""
    mu, weight = tensor.mu.detach().double().flatten(), weight.detach().to(tensor.mu.device).double().flatten()
    return float(mu @ weight / (mu.norm() * weight.norm()))


def equal_values(mu: Tensor, weight: Tensor) -> bool:
    """Return whether two tensors are equal to the bit, in the coarser dtype of the two."""
    return torch.equal(mu.to(weight.dtype), weight) or torch.equal(weight.to(mu.dtype), mu)


def is_one_ratio(rho: Tensor, reference: Tensor, how: SigmaMap = SOFTPLUS) -> bool:
    """Return whether sigma / abs(reference) is one number over the tensor, to the rounding of both dtypes.

    Places where the reference is 0, or where sigma is at the floor, tell nothing and are left out. Where all others
    have the same size, a constant sigma would look the same, so the answer is no.

    Args:
        rho: What sigma is computed from.
        reference: A tensor of the same shape: mu, or the teacher's weight.
        how: How sigma is computed.
    """
    if len(usable_places(rho, reference)) < 2:
        return False
    ratio, size, allowed = ratios(rho, reference, how)
    varies = float(size.log().max() - size.log().min()) > 4 * float(allowed.median())
    return varies and bool(((ratio - ratio.median()).abs() <= allowed).all())


def usable_places(rho: Tensor, reference: Tensor) -> Tensor:
    """Return the numbers of the places, of flat tensors, where sigma / abs(reference) tells something."""
    size, r = reference.double().abs().flatten(), rho.double().flatten()
    usable: Tensor = ((size > 0) & torch.isfinite(size) & torch.isfinite(r) & (r > _FLOOR)).nonzero().flatten()
    return usable


def ratios(rho: Tensor, reference: Tensor, how: SigmaMap = SOFTPLUS) -> tuple[Tensor, Tensor, Tensor]:
    """Return log(sigma / abs(reference)), abs(reference), and by how much rounding moves the first, where it is usable.

    MOPED rounds delta * abs(w), its expm1 and its logarithm; rho's own rounding moves sigma by abs(rho) eps of itself.
    """
    usable = usable_places(rho, reference)
    size, r = reference.double().abs().flatten()[usable], rho.double().flatten()[usable]
    sigma = how.of(r)
    fine, coarse = precision(reference), precision(rho)
    step = coarse.eps * (r.abs().clamp_min(float(r.median().abs())) + 2) + fine.eps
    subnormal = coarse.smallest_normal * coarse.eps / sigma + fine.smallest_normal * fine.eps / size
    return sigma.log() - size.log(), size, 2 * (step + subnormal)


def precision(values: Tensor) -> torch.finfo:
    """Return the limits of the coarsest dtype that holds the values exactly: a model may have been cast up."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(values.to(dtype).to(values.dtype).nan_to_num(), values.nan_to_num()):
            return torch.finfo(dtype)
    return torch.finfo(values.dtype)


def _is_random_start(mu: Tensor, rho: Tensor, means: tuple[float, float] | None) -> bool:
    if mu.numel() < FEW or not bool(torch.isfinite(mu).all() & torch.isfinite(rho).all()):
        return False
    known = means if means is not None else (None, None)
    return all(_is_normal(values, mean) for values, mean in zip((mu, rho), known, strict=True))


def _is_normal(values: Tensor, mean: float | None) -> bool:
    """Return whether values may have come from the normal distribution of the random start, about a mean where known.

    By the z-test of the mean, the chi-square test of the variance and the Kolmogorov-Smirnov test of the shape. The
    rounding of a coarse dtype counts as the most by which it moves a value.
    """
    exact = values.double().flatten()
    slack = float(exact.abs().mean()) * precision(values).eps / 2 / RANDOM_START
    centred = (exact - (exact.mean() if mean is None else mean)) / RANDOM_START
    sums = Sums(
        count=len(exact) - (mean is None),
        total=float(centred.sum()),
        squares=float(centred.square().sum()),
        slack=slack,
    )
    if sums.variance_p() <= _START_ERROR or (mean is not None and sums.mean_p() <= _START_ERROR):
        return False
    return shape_p(centred, slack) > _START_ERROR


def score_bound(tensors: int, error: float) -> float:
    """Return the score that any of so many standard normal ones exceeds with at most this probability (Bonferroni)."""
    from scipy.stats import norm

    return float(norm.isf(error / tensors))


def relation(cosines: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Return the largest score of single cosines, and the score of all of them together, weighed by their sizes.

    Under independence of the weights (isotropic in one of each pair), each is standard normal: see
    `stats.normal.correlation_scores`. Stouffer's sum with weights sqrt(n) is standard normal again.
    """
    scores = correlation_scores(cosines, sizes)
    pooled = (scores * sizes.sqrt()).sum() / sizes.sum().sqrt()
    return float(scores.max()), float(pooled)
