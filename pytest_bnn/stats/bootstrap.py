"""The bootstrap: how means vary with the examples. Its intervals are approximate, so no verdict rests on one.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Resamples of the examples, and the share of them inside of an interval.
RESAMPLES, INSIDE = 1000, 0.95

#: Numbers held at a time.
_BLOCK = 4_000_000


def resampled_means(values: Tensor, *, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """Return the means of columns ``[resamples, K]`` over examples that are drawn with replacement.

    All columns of a resample are of the same examples, so that their differences are paired.

    Args:
        values: A row for each example, ``[N, K]``, all of them finite.
        seed: Of the draws.
        resamples: How many there are.
    """
    rows, generator = len(values), torch.Generator().manual_seed(seed)
    step, parts = max(1, _BLOCK // rows), []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = torch.randint(rows, (size, rows), generator=generator)
        times = torch.zeros(size, rows, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1, 1).double().expand(size, rows)
        )
        parts.append(times @ values.double() / rows)
    return torch.cat(parts)


def percentile_interval(means: Tensor, inside: float = INSIDE) -> tuple[float, float]:
    """Return the interval that leaves out as many resamples ``[resamples]`` on either side."""
    ends = torch.tensor([(1 - inside) / 2, (1 + inside) / 2], dtype=means.dtype)
    low, high = torch.quantile(means, ends).tolist()
    return low, high
