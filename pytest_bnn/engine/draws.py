"""Are the weights that a model's own forward used draws from the posterior that its mu and rho say?"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

from pytest_bnn.capture import LayerCall
from pytest_bnn.posterior import PosteriorTensor, sigma_into

#: Chance that a sound model is sent away.
ERROR_RATE = 1e-6

#: So many numbers of each tensor, from its start, are compared with other passes and other layers, one by one.
_HEAD = 4096

#: Numbers of a tensor that are looked at together: they stay in the processor's cache, and memory stays small.
_PART = 1 << 17

#: Where the spacing of floats at mu exceeds this share of sigma, a draw cannot be seen in the sum of the two.
_ROUNDING = 0.1

#: A sigma below this is none.
_TINY = 1e-30

#: No standard normal number is larger: the chance is 1e-23.
_LARGEST = 10.0


@dataclass(slots=True)
class _Sums:
    """What all passes together said about one tensor."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    heads: list[Tensor] = field(default_factory=list)

    def take(self, values: Tensor) -> None:
        self.count += values.numel()
        self.total += float(values.sum())
        self.squares += float(values.square().sum())


@dataclass(frozen=True, slots=True)
class _Test:
    probability: float
    reason: str


class DrawTests:
    """Collects the draws of several passes, then tests mean, variance, distribution and independence.

    Every test has its exact or a conservative null distribution, given that the numbers are independent standard
    normals (Flipout's signs: fair coins); together they err with probability `ERROR_RATE`, by Bonferroni's bound.
    """

    def __init__(self) -> None:
        self._noise: defaultdict[tuple[str, int], _Sums] = defaultdict(_Sums)
        self._signs: defaultdict[tuple[str, int], _Sums] = defaultdict(_Sums)
        self._trouble = ""

    def take(self, calls: list[LayerCall]) -> None:
        """Take what one pass did."""
        seen: defaultdict[int, int] = defaultdict(int)
        for call in calls:
            number = seen[id(call.layer.module)]
            seen[id(call.layer.module)] += 1
            found = call.noise()
            if len(found) != len(call.layer.tensors):
                self._trouble = self._trouble or f"{call.layer.path or 'the model'} does not show its draws"
            for tensor, noise in found:
                self._take_noise(tensor, noise, number, rounded=call.layer.estimator != "Flipout")
            if call.layer.estimator == "Flipout":
                if len(call.signs) != 2:
                    self._trouble = self._trouble or f"{call.layer.path or 'the model'} does not draw signs twice"
                for half, signs in enumerate(call.signs):
                    values, name = signs.flatten(), f"{call.layer.path} ({'input' if half == 0 else 'output'})"
                    self._signs[name, number].take(values.float())
                    self._signs[name, number].heads.append(values[:_HEAD].double())

    def _take_noise(self, tensor: PosteriorTensor, noise: Tensor, number: int, *, rounded: bool) -> None:
        sums = self._noise[tensor.name, number]
        heads: list[Tensor] = []
        whole = (tensor.rho.detach(), tensor.mu.detach(), noise)
        for rho, mu, part in zip(*(value.flatten().split(_PART) for value in whole), strict=True):
            sigma = sigma_into(torch.empty_like(rho), rho)
            values = part / sigma
            seen, spacing = sigma > _TINY, torch.zeros(1)
            if rounded:
                spacing = torch.finfo(sigma.dtype).eps * mu.abs()
                seen &= spacing <= _ROUNDING * sigma
            everything = bool(seen.all())
            low, high = (float(bound) for bound in torch.aminmax(values if everything else part))
            if not all(math.isfinite(bound) for bound in (low, high, float(sigma.max()))):
                self._trouble = self._trouble or f"{tensor.name} is drawn with NaN or infinity"
                return
            if everything:
                far = max(-low, high) > _LARGEST
            else:
                far = bool((part.abs() > _LARGEST * sigma + 2 * spacing + _TINY).any())
                values = values[seen]
            if far:
                self._trouble = self._trouble or f"{tensor.name} is drawn further from mu than {_LARGEST:g} sigma"
            sums.take(values)
            if sum(len(head) for head in heads) < _HEAD:
                heads.append(values[:_HEAD].double())
        sums.heads.append(torch.cat(heads)[:_HEAD])

    def trouble(self) -> str:
        """Say what is wrong with the draws; empty where nothing is."""
        if self._trouble:
            return self._trouble
        tests = list(self._tests())
        worst = min(tests, key=lambda test: test.probability, default=None)
        if worst is None or worst.probability * len(tests) > ERROR_RATE:
            return ""
        return f"{worst.reason} (p = {worst.probability:.1g} in {len(tests)} tests)"

    def _tests(self) -> Iterator[_Test]:
        noise = {key: sums for key, sums in self._noise.items() if sums.count}
        for (name, _), sums in noise.items():
            mean, spread = sums.total / sums.count, math.sqrt(sums.squares / sums.count)
            shifted = _normal(sums.total / math.sqrt(sums.count))
            yield _Test(shifted, f"{name} is drawn with the mean mu + {mean:.3g} sigma")
            both = min(stats.chi2.cdf(sums.squares, sums.count), stats.chi2.sf(sums.squares, sums.count))
            yield _Test(2 * float(both), f"{name} is drawn with {spread:.3g} times its sigma")
            yield _Test(_distribution(sums.heads), f"{name} is not drawn from a normal distribution")
        if noise:
            pooled = [head for sums in noise.values() for head in sums.heads]
            yield _Test(_distribution(pooled), "the weights are not drawn from a normal distribution")
        for (name, _), sums in self._signs.items():
            # Hoeffding 1963: twice exp(-t^2 / 2) is never below a binomial's tails.
            bound = 2 * math.exp(-0.5 * sums.total**2 / sums.count)
            yield _Test(bound, f"the signs of {name} are not fair: their mean is {sums.total / sums.count:.3g}")
        for (name, _), sums in itertools.chain(noise.items(), self._signs.items()):
            for one, other in itertools.combinations(range(len(sums.heads)), 2):
                reason = f"{name} uses related noise in passes {one + 1} and {other + 1}"
                yield _Test(_related(sums.heads[one], sums.heads[other]), reason)
        joined = {key: torch.stack(sums.heads) for key, sums in noise.items() if len({len(h) for h in sums.heads}) == 1}
        for (one_key, a), (other_key, b) in itertools.combinations(joined.items(), 2):
            common = min(a.shape[1], b.shape[1])
            probability = _related(a[:, :common].flatten(), b[:, :common].flatten())
            yield _Test(probability, f"{one_key[0]} and {other_key[0]} share their noise")


def _normal(deviate: float) -> float:
    return math.erfc(abs(deviate) / math.sqrt(2))


def _distribution(parts: list[Tensor]) -> float:
    values = torch.cat(parts)
    return float(stats.kstest(values.numpy(), "norm").pvalue) if values.numel() else 1.0


def _related(one: Tensor, other: Tensor) -> float:
    """Give the probability of so large a product: given one, its product with fresh numbers is normal.

    With coins for numbers it is sub-Gaussian, so that Hoeffding's bound holds; it is used for both.
    """
    common = min(len(one), len(other))
    one, other = one[:common], other[:common]
    norm = float(other.norm())
    deviate = float(one @ other) / norm if norm else 0.0
    return min(1.0, 2 * math.exp(-0.5 * deviate**2))
