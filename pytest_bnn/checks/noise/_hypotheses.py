"""The tests of ``noise.posterior``: what draws of a posterior have to be, with p-values corrected for their number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pytest_bnn.checks.noise._draws import TensorDraws, across_passes, between_layers
from pytest_bnn.stats.normal import SHAPE_DRAWS, Sums, shape_p

#: Mean, variance, shape, passes, layers, entries: each has its share of the error rate, split over its tests.
FAMILIES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A hypothesis: its p-value, times the number of those that share the error rate, and what a small one says."""

    p: float
    about: tuple[TensorDraws, ...]
    words: str
    remedy: str


def number_of_tests(seen: list[TensorDraws]) -> int:
    """Count the tests of so many tensors' draws."""
    return 3 * (len(seen) + 1) + sum(t.tests_between_passes + t.within.tests for t in seen) + _between(len(seen))


def _between(size: int) -> int:
    """Count the tests of so many tensors: of each two in one pass, of each with each other one in the pass before."""
    return size * (size - 1) // 2 + size * (size - 1)


def independence(seen: list[TensorDraws], alpha: float) -> Iterable[Tested]:
    """Test that draws are fresh: for each entry, for each pass, and for each layer, in a pass and from pass to pass.

    Draws whose own entries depend on each other are not compared further, which takes that for granted.
    """
    inside = sum(1 for t in seen if t.within.tests)
    whole = set()
    for t in seen:
        if not t.within.tests:
            whole.add(id(t))
            continue
        p, words = t.within.dependent()
        if p * inside * FAMILIES >= alpha:
            whole.add(id(t))
        yield Tested(
            p=min(1.0, p * inside * FAMILIES),
            about=(t,),
            words=f"`{t.tensor.name}`: its noise is not independent within the tensor: {words}",
            remedy="draw noise for every weight: no repeat, expand or broadcast of what was drawn; a posterior whose "
            "weights depend on each other on purpose (low rank, matrix normal) is not the one that this claim is about",
        )
    between_passes = sum(1 for t in seen if t.tests_between_passes)
    for t in seen:
        if id(t) not in whole or not t.tests_between_passes:
            continue
        p, words = t.reused()
        yield Tested(
            p=min(1.0, p * between_passes * FAMILIES),
            about=(t,),
            words=f"`{t.tensor.name}`: {words}",
            remedy="draw the noise anew in every call of the layer: no cache, no seed inside forward",
        )
    # In one pass a pair is compared once, with the pass before in both directions.
    size = len(seen)
    number = _between(size)
    here = torch.triu_indices(size, size, 1).flip(0)
    before = (~torch.eye(size, dtype=torch.bool)).nonzero().T
    for compare, (rows, columns), when in ((between_layers, here, ""), (across_passes, before, " in the pass before")):
        values, cosines = compare(seen)
        pairs = zip(rows.tolist(), columns.tolist(), values[rows, columns].tolist(), strict=True)
        for row, column, p in pairs:
            if id(seen[row]) not in whole or id(seen[column]) not in whole:
                continue
            yield Tested(
                p=min(1.0, p * number * FAMILIES),
                about=(seen[row], seen[column]),
                words=f"`{seen[row].tensor.name}`: its noise correlates with that of "
                f"`{seen[column].tensor.name}`{when}: "
                f"{float(cosines[row, column]):.3g}",
                remedy="let every layer draw noise of its own, and none seed the generator",
            )


def marginals(sound: list[TensorDraws], small: list[TensorDraws], groups: int) -> list[Tested]:
    """Test that independent draws are N(0, 1): mean, variance, shape, of each tensor, and of small ones together."""
    pool = tuple(t for t in sound if t in small)
    members = [(t,) for t in sound] + ([pool] if len(pool) > 1 else [])
    tests = []
    for about in members:
        broken = sum(t.not_finite for t in about)
        name = f"`{about[0].tensor.name}`" if len(about) == 1 else f"{len(about)} small tensors together"
        if broken:
            tests.append(
                Tested(
                    p=0.0,
                    about=about,
                    words=f"{name}: {broken} draws hold NaN or infinity",
                    remedy="look for NaN in the forward",
                )
            )
            continue
        sums = sum((t.sums for t in about), Sums())
        heads = torch.cat([head for t in about for head in t.heads])[:SHAPE_DRAWS]
        silent = sums.squares == 0
        says = "it makes no noise" if silent else f"its noise has {sums.scale:.4g} times the sigma of the posterior"
        found = (
            (
                sums.variance_p(), says,
                "use sigma = log(1 + exp(rho)) once and unscaled: the library's own forward does",
            ),
            (
                sums.mean_p(), f"its noise has the mean {sums.total / sums.count:.3g} sigma, not 0",
                "draw the noise about mu",
            ),
            (
                shape_p(heads, max(t.largest_slack for t in about)),
                "its noise is not Gaussian (Kolmogorov-Smirnov)",
                "draw eps from N(0, 1), as normal_() does",
            ),
        )  # fmt: skip
        tests += [
            Tested(p=min(1.0, p * groups * FAMILIES), about=about, words=f"{name}: {words}", remedy=remedy)
            for p, words, remedy in found
        ]
    return tests
