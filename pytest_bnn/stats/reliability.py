"""Reliability diagrams: the share of right answers as an increasing function of the confidence, and its band.

Source: Dimitriadis, Gneiting and Jordan 2021, "Stable reliability diagrams for probabilistic classifiers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[numpy.float64]

#: Resamples of the labels: the ends of a 90 % band then lie between the 10th and the 11th of them.
RESAMPLES = 200

#: The share of resamples inside of the band, at each confidence.
BAND = 0.9


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reliability:
    """The isotonic regression of outcomes on confidences, as the blocks on which it is constant.

    Between blocks it runs straight.

    Attributes:
        low: The smallest confidence in each block, increasing.
        high: The largest.
        share: The share of outcomes that came true, increasing.
        count: How many examples a block has.
    """

    low: Floats
    high: Floats
    share: Floats
    count: NDArray[numpy.int64]


def reliability(confidence: Tensor, right: Tensor) -> Reliability:
    """Fit the share of right answers as an increasing function of the confidence, by pooling adjacent violators.

    Args:
        confidence: In [0, 1], ``[N]``, at least one.
        right: Whether the answer was right, ``[N]``.
    """
    where, group, counts = _distinct(confidence)
    fitted = _fit(group, counts, right.detach().cpu().double().numpy())
    starts = numpy.flatnonzero(numpy.concatenate([[True], numpy.diff(fitted) > 0]))
    ends = numpy.concatenate([starts[1:], [len(fitted)]]) - 1
    return Reliability(
        low=where[starts], high=where[ends], share=fitted[starts], count=numpy.add.reduceat(counts, starts)
    )


def consistency_band(
    confidence: Tensor, at: Floats, *, seed: int, resamples: int = RESAMPLES, share: float = BAND
) -> tuple[Floats, Floats]:
    """Return between which shares the regression lies where the confidences are right, at each place of its own.

    The outcomes are drawn anew from the confidences and fitted, many times.

    Args:
        confidence: In [0, 1], ``[N]``, at least one.
        at: Confidences at which the band is wanted, within those of the examples.
        seed: Of the resamples.
        resamples: How many there are.
        share: How many of them lie inside.
    """
    where, group, counts = _distinct(confidence)
    chances = confidence.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    curves = []
    for _ in range(resamples):
        drawn = torch.rand(len(chances), generator=generator, dtype=torch.float64) < chances
        curves.append(numpy.interp(at, where, _fit(group, counts, drawn.double().numpy())))
    low, high = numpy.quantile(numpy.stack(curves), [(1 - share) / 2, (1 + share) / 2], axis=0)
    return low, high


def _distinct(confidence: Tensor) -> tuple[Floats, Any, Any]:
    return numpy.unique(confidence.detach().cpu().double().numpy(), return_inverse=True, return_counts=True)


def _fit(group: Any, counts: Any, outcomes: Floats) -> Floats:
    from sklearn.isotonic import isotonic_regression

    means = numpy.bincount(group, weights=outcomes, minlength=len(counts)) / counts
    fitted: Floats = isotonic_regression(means, sample_weight=counts.astype(float), y_min=0.0, y_max=1.0)
    return fitted
