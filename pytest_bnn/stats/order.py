"""The order of numbers: how well they tell two kinds apart, and the place of each."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the share of pairs in which the value from outside is the larger; equal ones count half.

    Values from 0 are equal where a hundred-thousandth of them is between them, which rounding can make.
    """
    ordered, others = inside.double().clamp_min(0).sort().values, outside.double().clamp_min(0)
    below = torch.searchsorted(ordered, others * (1 - 1e-5), right=False)
    upto = torch.searchsorted(ordered, others * (1 + 1e-5), right=True)
    return float((below + upto).double().mean()) / 2 / len(inside)


def ranks(values: Tensor) -> Tensor:
    """Return, for each value, the share of all that are smaller; equal ones, itself too, count half, ``[N]``."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    upto = torch.searchsorted(ordered, values, right=True)
    return (below + upto).double() / 2 / len(values)
