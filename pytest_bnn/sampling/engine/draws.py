"""Are the weights that a model's own forward used draws from the posterior that its mu and rho say?"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bnn.libraries.capture import LayerCall
from pytest_bnn.libraries.posterior import PosteriorTensor
from pytest_bnn.stats.normal import Sums, compared, shape_p

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
class _Draws:
    """What all passes together said about one tensor, or about the signs of one layer."""

    sums: Sums = field(default_factory=Sums)
    heads: list[Tensor] = field(default_factory=list)

    def take(self, values: Tensor) -> None:
        self.sums += Sums(count=values.numel(), total=float(values.sum()), squares=float(values.square().sum()))


@dataclass(frozen=True, slots=True)
class _Test:
    """The smallest p-value of so many tests, and what it says."""

    p: float
    reason: str
    number: int = 1


class DrawTests:
    """Collects the draws of several passes, then tests mean, variance, distribution and independence.

    Every test has its exact or a conservative null distribution, given that the numbers are independent standard
    normals (Flipout's signs: fair coins); together they err with probability `ERROR_RATE`, by Bonferroni's bound.
    """

    def __init__(self) -> None:
        self._noise: defaultdict[tuple[str, int], _Draws] = defaultdict(_Draws)
        self._signs: defaultdict[tuple[str, int], _Draws] = defaultdict(_Draws)
        self._trouble = ""
        self._calls: defaultdict[int, int] = defaultdict(int)

    def begin_pass(self) -> None:
        """Begin another pass, of which all calls follow."""
        self._calls.clear()

    def take(self, call: LayerCall) -> None:
        """Take what one call of a layer did."""
        number = self._calls[id(call.layer.module)]
        self._calls[id(call.layer.module)] += 1
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
                self._signs[name, number].heads.append(values[:_HEAD].clone().cpu())

    def _take_noise(self, tensor: PosteriorTensor, noise: Tensor, number: int, *, rounded: bool) -> None:
        draws = self._noise[tensor.name, number]
        heads: list[Tensor] = []
        whole = (tensor.rho.detach().expand(tensor.mu.shape), tensor.mu.detach(), noise)
        for rho, mu, part in zip(*(value.flatten().split(_PART) for value in whole), strict=True):
            sigma = tensor.map.into(torch.empty_like(rho), rho)
            values = part / sigma
            seen, spacing = sigma > _TINY, torch.zeros(1, device=sigma.device)
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
            draws.take(values)
            if sum(len(head) for head in heads) < _HEAD:
                heads.append(values[:_HEAD].clone().cpu())
        draws.heads.append(torch.cat(heads)[:_HEAD])

    def trouble(self) -> str:
        """Say what is wrong with the draws; empty where nothing is."""
        if self._trouble:
            return self._trouble
        tests = list(self._tests())
        worst, number = min(tests, key=lambda test: test.p, default=None), sum(test.number for test in tests)
        if worst is None or worst.p * number > ERROR_RATE:
            return ""
        return f"{worst.reason} (p = {worst.p:.1g} in {number} tests)"

    def _tests(self) -> Iterator[_Test]:
        noise = {key: draws for key, draws in self._noise.items() if draws.sums.count}
        for (name, _), draws in noise.items():
            sums = draws.sums
            yield _Test(sums.mean_p(), f"{name} is drawn with the mean mu + {sums.total / sums.count:.3g} sigma")
            yield _Test(sums.variance_p(), f"{name} is drawn with {sums.scale:.3g} times its sigma")
            yield _Test(shape_p(torch.cat(draws.heads), 0.0), f"{name} is not drawn from a normal distribution")
        if noise:
            pooled = torch.cat([head for draws in noise.values() for head in draws.heads])
            yield _Test(shape_p(pooled, 0.0), "the weights are not drawn from a normal distribution")
        for (name, _), draws in self._signs.items():
            # Hoeffding 1963: twice exp(-t^2 / 2) is never below a binomial's tails.
            total, count = draws.sums.total, draws.sums.count
            bound = 2 * math.exp(-0.5 * total**2 / count)
            yield _Test(bound, f"the signs of {name} are not fair: their mean is {total / count:.3g}")
        for (name, _), draws in itertools.chain(noise.items(), self._signs.items()):
            for one, other in itertools.combinations(range(len(draws.heads)), 2):
                reason = f"{name} uses related noise in passes {one + 1} and {other + 1}"
                yield _Test(_related(draws.heads[one], draws.heads[other]), reason)
        yield from _between_layers(noise)


def _between_layers(noise: Mapping[tuple[str, int], _Draws]) -> Iterator[_Test]:
    """Compare the noise of each two tensors in a pass, and that of one with that of the other in the pass before."""
    names, size = [name for name, _ in noise], len(noise)
    passes = min((len(draws.heads) for draws in noise.values()), default=0)
    heads = [[draws.heads[index] for draws in noise.values()] for index in range(passes)]
    others = ~torch.eye(size, dtype=torch.bool)
    for rounds, mask, when in (
        (zip(heads, heads, strict=True), others.triu(), ""),
        (zip(heads[1:], heads, strict=False), others, " of the pass before"),
    ):
        if bool(mask.any()):
            p = torch.where(mask, compared(size, rounds)[0], 1.0)
            row, column = divmod(int(p.argmin()), size)
            reason = f"{names[row]} and {names[column]}{when} share their noise"
            yield _Test(float(p[row, column]), reason, int(mask.sum()))


def _related(one: Tensor, other: Tensor) -> float:
    """Return the probability of so large a product: given one, its product with fresh numbers is normal.

    With coins for numbers it is sub-Gaussian, so that Hoeffding's bound holds; it is used for both.
    """
    common = min(len(one), len(other))
    one, other = one[:common].double(), other[:common].double()
    norm = float(other.norm())
    deviate = float(one @ other) / norm if norm else 0.0
    return min(1.0, 2 * math.exp(-0.5 * deviate**2))
