"""How well one number tells examples of two kinds apart."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the share of pairs in which the value from outside is the larger; equal ones count half."""
    ordered = inside.double().sort().values
    below = torch.searchsorted(ordered, outside.double(), right=False)
    upto = torch.searchsorted(ordered, outside.double(), right=True)
    return float((below + upto).double().mean()) / 2 / len(inside)
